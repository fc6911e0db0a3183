"""Options and fixtures shared by all tests."""

import pytest
import tree
from hiding import hide_gpus
from places import GOLDEN


def pytest_configure(config):
    hide_gpus(config.option.markexpr)


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir",
        default=str(GOLDEN),
        help="folder with the reference values (same file names and keys as tests/golden)",
    )


@pytest.fixture
def copy(tmp_path):
    """A working tree of its own."""
    return tree.plant(tmp_path / "tree")


@pytest.fixture(autouse=True)
def _two_threads():
    """Small tensors: more threads only wait for each other."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


for _topic in ("golden_models", "golden_distill", "golden_evaluate"):
    pytest.register_assert_rewrite(_topic)
