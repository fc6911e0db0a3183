"""Published YOLOX weights, and our own, into a detector; says what was left out and why."""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fsd.files import DamagedError, read_verified

SEAL = "sha256"  # in the description inside a weights.pt: see `fingerprint`
ADVICE = "train that run again (the same command), or copy its folder again"
COUNTER = "num_batches_tracked"  # of a batch norm; not used here, and absent from some files

_NORM = ("weight", "bias", "running_mean")


class Loaded(NamedTuple):
    """What became of the model's entries, batch-norm counters not counted."""

    loaded: int
    total: int
    left_out: tuple[str, ...]  # "key (reason)", of the model's entries and of the file's
    folded: bool  # the file's batch norms do nothing but add: see `_folded`


def load_weights(
    model: nn.Module, path: str | Path, *, partial: bool = False, expected: str | None = None
) -> Loaded:
    """Copies the weights in `path` into `model`, entry by entry of equal name and shape.

    Reads the official repository's checkpoints and our weights.pt (a mapping with the state
    under "model" or "ema"), a plain state dict, and .npz archives with the state's names as keys.
    No file can execute code. expected: the file's sha256, where a record tells it.

    Raises FileNotFoundError, and ValueError where the file is damaged, another one than expected, or
    holds anything but tensors, or where an entry does not fit, unless `partial`, which leaves such
    entries as they are. An error leaves the model as it was.
    """
    path = Path(path)
    return load_state(model, read_content(path, expected), path, partial=partial)


def load_state(model: nn.Module, content: Any, path: Path, *, partial: bool = False) -> Loaded:
    """As `load_weights`, from what `read_content` found in the file."""
    found = _state(content, path)
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


def fingerprint(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """sha256 over every tensor's name, type, shape and bytes, and over the description beside them.

    It stands in the description itself, so that a weights.pt without any record is still known to hold
    the numbers it was saved with.
    """
    total = hashlib.sha256()
    said = {name: value for name, value in meta.items() if name != SEAL}
    total.update(json.dumps(said, sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"\0{name} {value.dtype} {list(value.shape)}\0".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read_content(path: Path, expected: str | None = None) -> Any:
    """What a weights file holds, tensors on the CPU. Raises as `load_weights`."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}: check the path in params.yaml")
    data = path.read_bytes() if expected is None else read_verified(path, expected, ADVICE)
    content = _read_npz(data, path) if path.suffix == ".npz" else _read_torch(data, path)
    meta = content.get("meta") if isinstance(content, dict) else None
    if isinstance(meta, dict) and SEAL in meta:
        try:
            same = fingerprint(content["model"], meta) == meta[SEAL]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            same = False
        if not same:
            raise DamagedError(
                f"{path} is damaged: it holds other numbers than were saved: {ADVICE}"
            )
    return content


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of a file's content."""
    state = _unwrap(content)
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


def _read_torch(data: bytes, path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise ValueError(
                f"{path} is damaged or holds Python objects other than tensors: save the "
                "model's state dict alone"
            ) from error
        raise ValueError(f"{path} is damaged: download or save it again") from error
    except Exception as error:  # whatever a damaged file makes of the library
        raise ValueError(f"{path} is damaged or no PyTorch file: get it again") from error


def _unwrap(content: object) -> object:
    """The state dict inside a checkpoint."""
    for key in ("model", "ema", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return _unwrap(content[key])
    return content


def _read_npz(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    except Exception as error:  # whatever a damaged file makes of the library
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
