"""Tests see no GPU unless they are asked to: a suite must not take a card that others compute on."""

import os
import re


def hide_gpus(marks: str) -> None:
    """For this process and those it starts, before torch looks; not where `pytest -m` selects gpu."""
    if not re.search(r"(?<!not )\bgpu\b", marks):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
