"""Distillation in a training loop of your own: torchvision's RetinaNet or FCOS, ResNet-50 to ResNet-18.

Random weights and drawn scenes, so that it runs anywhere in a minute:

    python examples/torchvision_detectors.py --detector fcos

The three lines that add a method are marked. Everything else is an ordinary training loop.
"""

import argparse

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fsd.data.scenes.compose import CLASSES, scene
from fsd.distill import load
from fsd.types import Targets

CHANNELS = 256  # of torchvision's pyramids
DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS}
# methods.fsd of params.yaml; constructors have no defaults, so that every number is written down.
FSD = {
    "temp": 0.5,
    "fg_weight": 1.0,
    "bg_weight": 1.0,
    "attention_weight": 1e-3,
    "relation_weight": 1e-5,
    "ring": "box",
    "standardise": "batch",
    "teacher_attention": True,
}


def detector(name: str, resnet: str, side: int) -> nn.Module:
    """One of torchvision's, on the pyramid that it has there: five levels, strides 8 to 128."""
    backbone = resnet_fpn_backbone(
        backbone_name=resnet,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS),
    )
    sizes = {"min_size": side, "max_size": side}  # the images come in the network's size
    return DETECTORS[name](backbone, num_classes=len(CLASSES), **sizes)


def batch(side: int, count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images [3, side, side] in 0..1 and their objects, as torchvision's detectors take them."""
    images, objects = [], []
    for index in range(count):
        picture, boxes, labels = scene(0, index, side)
        images.append(torch.from_numpy(picture).permute(2, 0, 1) / 255)
        objects.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
    return images, objects


def padded(objects: list[dict[str, Tensor]]) -> Targets:
    """Objects of each image as one tensor: boxes [B, M, 4], labels [B, M] with -1 for padding."""
    pad = nn.utils.rnn.pad_sequence
    return Targets(
        pad([o["boxes"] for o in objects], batch_first=True),
        pad([o["labels"] for o in objects], batch_first=True, padding_value=-1),
    )


def settle(teacher: nn.Module, images: list[Tensor]) -> None:
    """Give an untrained teacher batch norm statistics. With a trained one (yours), leave this out."""
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        teacher.backbone(teacher.transform(images)[0].tensors)


def train(name: str, *, steps: int, side: int = 128, count: int = 4) -> list[tuple[float, float]]:
    """Overfit one batch; returns the detector's own loss and the distillation's of each step."""
    torch.manual_seed(0)
    images, objects = batch(side, count)
    student = detector(name, "resnet18", side)
    teacher = detector(name, "resnet50", side)
    settle(teacher, images)
    teacher.eval().requires_grad_(False)
    seen: list[list[Tensor]] = []  # the student's maps of the last step
    student.backbone.register_forward_hook(lambda *call: seen.append(list(call[-1].values())))

    channels = [CHANNELS] * 5  # of each level
    distiller = load("fsd")(channels, channels, **FSD)  # 1

    trained = [*student.parameters(), *distiller.parameters()]  # it may have parameters of its own
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    log = []
    for _ in range(steps):
        losses = student(images, objects)
        with torch.no_grad():
            maps = list(teacher.backbone(teacher.transform(images)[0].tensors).values())
        terms = distiller(seen.pop(), maps, padded(objects), (side, side))  # 2
        task, kd = sum(losses.values()), sum(terms.values())
        optimizer.zero_grad()
        (task + kd).backward()  # 3
        optimizer.step()
        log.append((task.item(), kd.item()))
    return log


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--detector", choices=DETECTORS, default="retinanet")
    arguments.add_argument("--steps", type=int, default=20)
    chosen = arguments.parse_args()
    for step, (task, kd) in enumerate(train(chosen.detector, steps=chosen.steps), 1):
        print(f"step {step}: task {task:.3f}, distillation {kd:.3f}")


if __name__ == "__main__":
    main()
