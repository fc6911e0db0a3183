"""A detector and a split to what it finds there, in original pixels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fsd.boxes import to_original
from fsd.data.loaders import evaluation_batches
from fsd.data.split import Split
from fsd.evaluate.detections import Found
from fsd.models.postprocess import postprocess


def predict(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Run a detector (raw pixels to Outputs) over a whole split, in the order of its images.

    The model is moved to `device` and runs in evaluation mode and float32; each of its modules is
    in its former mode afterwards. `progress` is called with images done and images in all.
    """
    model.to(device)
    images, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    scores, boxes = [torch.empty(0)], [torch.empty(0, 4)]
    done = 0
    with evaluation_mode(model), torch.inference_mode():
        for batch in evaluation_batches(split, batch_size=batch_size, device=device):
            outputs = model(batch.images.to(memory_format=torch.channels_last))
            detections = postprocess(
                outputs,
                score_threshold=score_threshold,
                nms_iou=nms_iou,
                max_detections=max_detections,
            )
            counts = [len(d.scores) for d in detections]
            ids = batch.image_ids.cpu()
            images.append(ids.repeat_interleave(torch.tensor(counts)))
            labels.append(torch.cat([d.labels for d in detections]).cpu())
            scores.append(torch.cat([d.scores for d in detections]).cpu())
            found = torch.cat([d.boxes for d in detections]).cpu().split(counts)
            boxes += [_to_original(b, split, i) for b, i in zip(found, ids.tolist(), strict=True)]
            done += len(ids)
            if progress:
                progress(done, len(split))
    return Found(
        torch.cat(images).numpy(),
        torch.cat(labels).numpy(),
        torch.cat(scores).numpy().astype(np.float64),
        torch.cat(boxes).numpy().astype(np.float64),
    )


def _to_original(boxes: Tensor, split: Split, image: int) -> Tensor:
    height, width = split.sizes[image].tolist()
    return to_original(boxes, float(split.scales[image]), height, width)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()`, and afterwards each module as it was (parts may have been frozen)."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
