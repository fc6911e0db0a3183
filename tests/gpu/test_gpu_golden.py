"""The reference programs' values on a GPU: network, assignment, losses, suppression, distillation."""

from pathlib import Path

import golden_distill
import golden_models
from gpu_cases import made_on
from places import GOLDEN

FILES = golden_models.FILES | golden_distill.FILES
# No tensor in them, or none with values.
LEFT_OUT = {"yolox_state_dict_keys.json", "yolox_model_info.json", "paper_log.npz"}


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("--golden-dir", default=str(GOLDEN)))
    cases = {
        f"{name}:{case}": check
        for name, yield_cases in FILES.items()
        if name not in LEFT_OUT and (folder / name).exists()
        for case, check in yield_cases(folder / name)
    }
    metafunc.parametrize("check", cases.values(), ids=cases.keys())


def test_equals_reference(check, device):
    with made_on(device):
        check()
