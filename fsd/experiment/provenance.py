"""What made this file: code, parameters, data, teacher, versions, device, time."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pycocotools", "pandas")


def commit() -> dict[str, Any]:
    """The code's commit and whether the package, parameters or workflow differ from it."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "fsd", "params.yaml", "paper")
    return {"commit": head, "dirty": bool(changed) if head else None}


def versions() -> dict[str, str]:
    """Python and the packages that shape numbers; the CUDA libraries where torch has them."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")  # only where the stage uses it: the import takes seconds
    if torch is not None and torch.cuda.is_available():
        out["cuda"] = torch.version.cuda or ""
        out["cudnn"] = str(torch.backends.cudnn.version())
    return out


def device_name() -> str:
    """The processor's or GPU's model; no host name."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def segment(command: str) -> dict[str, Any]:
    """One process's share of a result: a run that was resumed has several."""
    return commit() | {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "device": device_name(),
    }
