"""The stages of benchmarks/gpu.py: name -> function that measures on a `Bench` (see bench.py)."""

from importlib import import_module

MODULES = {
    "limits": "limits",
    "suite": "limits",
    "steps": "steps",
    "loop": "runs",
    "bits": "runs",
    "loaders": "feeding",
    "teacher": "steps",
    "predict": "feeding",
    "shared": "sharing",
    "gloo": "sharing",
    "pair": "runs",
}


def stage(name: str):
    """The function of that name."""
    return getattr(import_module(f"gpu_stages.{MODULES[name]}"), name)
