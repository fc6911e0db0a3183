"""Stand-ins for a `data` block of params.yaml, and what lies in a folder."""

import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from fsd.experiment.schema import Groups
from fsd.files import MEMORY


@dataclass
class Spec:
    """A stand-in for the `data` block of params.yaml."""

    format: str = "voc"
    source: str | None = None
    classes: list = field(default_factory=lambda: ["cat", "dog"])
    class_map: dict = field(default_factory=dict)
    splits: dict = field(default_factory=lambda: {"train": "train"})
    ratios: dict = field(default_factory=dict)
    groups: Groups | None = None
    download: str | None = None
    input_px: int = 64
    images: dict = field(default_factory=dict)
    seed: int = 0

    def model_dump(self):
        return asdict(self) | {"groups": self.groups and self.groups.model_dump()}


def scenes(**changes):
    images = {"train": 7, "test": 3}
    return Spec("scenes", classes=["fall", "no_fall"], splits={}, images=images, **changes)


def voc_spec(path, **changes):
    return Spec(source=str(path), splits={"train": "train", "test": "test"}, **changes)


def snapshot(root):
    """Every file and folder below `root` with its content, but what is remembered of hashes."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
        for p in root.rglob("*")
        if p.name != MEMORY
    }


@contextmanager
def powerless(path):
    """`path` and all below it read-only, also for a superuser, who is somebody else meanwhile."""
    user = os.geteuid()
    below = [path, *path.rglob("*")]
    for p in below:
        p.chmod(0o555 if p.is_dir() else 0o444)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for p in below:
            p.chmod(0o755 if p.is_dir() else 0o644)
