"""On a GPU: `make test-gpu`. The same tests on the CPU, where they can: `pytest tests/gpu -m "not gpu"`."""

import pytest
import torch


@pytest.fixture
def gpu() -> torch.device:
    """The GPU; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request) -> torch.device:
    """The CPU, to test the tests by, and the GPU."""
    return request.getfixturevalue("gpu") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain_arithmetic():
    """IEEE float32, and the same algorithms in every call."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    cudnn.deterministic = True
    yield
    cudnn.allow_tf32, cudnn.deterministic = True, False  # as torch starts


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, without MLflow."""
    from fsd.train import stage

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path
