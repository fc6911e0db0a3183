"""Equality with the reference programs, over whatever files the golden folder holds.

Each `golden_<topic>.py` has `FILES`: file name -> function that takes the file's path and yields
(case name, check) pairs. A file that is absent is not collected.
"""

from pathlib import Path

import golden_distill
import golden_evaluate
import golden_models

FILES = golden_models.FILES | golden_distill.FILES | golden_evaluate.FILES


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("--golden-dir"))
    cases = {
        f"{name}:{case}": check
        for name, yield_cases in FILES.items()
        if (folder / name).exists()
        for case, check in yield_cases(folder / name)
    }
    metafunc.parametrize("check", cases.values(), ids=cases.keys())


def test_equals_reference(check):
    check()
