"""Options and fixtures shared by all tests."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir",
        default=str(Path(__file__).parent / "golden"),
        help="folder with the reference values (same file names and keys as tests/golden)",
    )


def golden_dir(config) -> Path:
    return Path(config.getoption("--golden-dir"))


@pytest.fixture(autouse=True)
def _two_threads():
    """Small tensors: more threads only wait for each other."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


for _topic in ("golden_models", "golden_distill", "golden_evaluate"):
    pytest.register_assert_rewrite(_topic)
