"""`make test` on a machine with GPUs leaves them alone."""

import os

import pytest
import torch
from hiding import hide_gpus


def test_this_run_sees_gpus_only_if_it_selects_their_tests(request):
    wanted = "gpu" in request.config.option.markexpr.replace("not gpu", "")
    assert wanted or os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert wanted or not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("marks", "hidden"),
    [
        *(("", True), ("not slow and not gpu and not slurm", True), ("slow", True)),
        *(("gpu", False), ("gpu and not slow", False), ("slow or gpu", False)),
    ],
)
def test_the_marks_decide(monkeypatch, marks, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    hide_gpus(marks)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if hidden else "3")
