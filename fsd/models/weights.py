"""Published YOLOX weights, and our own, into a detector; says what was left out and why."""

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of a batch norm; not used here, and absent from some files

_NORM = ("weight", "bias", "running_mean")


class Loaded(NamedTuple):
    """What became of the model's entries, batch-norm counters not counted."""

    loaded: int
    total: int
    left_out: tuple[str, ...]  # "key (reason)", of the model's entries and of the file's
    folded: bool  # the file's batch norms do nothing but add: see `_folded`


def load_weights(model: nn.Module, path: str | Path, *, partial: bool = False) -> Loaded:
    """Copies the weights in `path` into `model`, entry by entry of equal name and shape.

    Reads the official repository's checkpoints and our weights.pt (a mapping with the state
    under "model" or "ema"), a plain state dict, and .npz archives with the state's names as keys.
    No file can execute code.

    Raises FileNotFoundError, and ValueError where the file is damaged or holds anything but
    tensors, or where an entry does not fit, unless `partial`, which leaves such entries as they
    are. An error leaves the model as it was.
    """
    path = Path(path)
    found = _read(path)
    own = model.state_dict()
    wanted = {name for name in own if not name.endswith(COUNTER)}
    fitting, left_out = {}, []
    for name in own:
        if name not in found:
            if name in wanted:
                left_out.append(f"{name} (not in the file)")
        elif found[name].shape != own[name].shape:
            shapes = f"{list(found[name].shape)} in the file, {list(own[name].shape)} in the model"
            left_out.append(f"{name} ({shapes})")
        else:
            fitting[name] = found[name]
    left_out += [f"{name} (not in the model)" for name in found if name not in own]
    if left_out and not partial:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise ValueError(
            f"{path} does not fit the model: {', '.join(left_out[:3])}{more}; `partial: true` "
            "loads the rest and leaves these out"
        )
    loaded = wanted & fitting.keys()
    if not loaded:
        raise ValueError(f"{path} has no entry that fits the model: choose another weights file")
    counters = {name: own[name].new_zeros(()) for name in own if name.endswith(COUNTER)}
    model.load_state_dict(counters | fitting, strict=False)
    return Loaded(len(loaded), len(wanted), tuple(left_out), _folded(fitting))


def _folded(state: dict[str, Tensor]) -> bool:
    """Whether every batch norm has weight 1 and mean 0, but some bias: an export folded the rest into
    the convolutions.

    Such a network computes the same, and cannot be trained further: in training mode a batch norm
    divides by the batch's deviation, and the channels' scales, which only the weights kept, are lost.
    """
    ends = {end: [v for k, v in state.items() if k.endswith(f".bn.{end}")] for end in _NORM}
    return bool(ends["weight"]) and (
        all(bool((x == 1).all()) for x in ends["weight"])
        and all(bool((x == 0).all()) for x in ends["running_mean"])
        and any(bool((x != 0).any()) for x in ends["bias"])
    )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}: check the path in params.yaml")
    state = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} holds no state dict: choose a weights file of this detector")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(name, str) or not plain or value.is_complex():
            raise ValueError(
                f"{path} holds something other than tensors under {name!r}: choose a file with "
                "the model's state dict"
            )
    return state


def _read_torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise ValueError(
                f"{path} is damaged or holds Python objects other than tensors: save the "
                "model's state dict alone"
            ) from error
        raise ValueError(f"{path} is damaged: download or save it again") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch file: get it again") from error
    return _unwrap(content)


def _unwrap(content: object) -> object:
    """The state dict inside a checkpoint."""
    for key in ("model", "ema", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return _unwrap(content[key])
    return content


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds something other than arrays") from error


def _numpy_scalars() -> list:
    """The official trainer stores its AP as a NumPy scalar beside the weights; harmless."""
    scalar = np._core.multiarray.scalar
    return [
        np.dtype,
        np.dtypes.Float64DType,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
