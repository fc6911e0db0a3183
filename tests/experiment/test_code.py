"""Which code made a result: what counts as another code and what does not."""

import pytest

from fsd.experiment import code

SOURCE = '''"""Module."""
import math  # why


class A:
    """Doc."""

    def f(self, x: int) -> str:
        """Doc of f."""
        return f"{x + 1:>{x}} # no comment {'a' 'b'}"
'''


@pytest.mark.parametrize(
    "old, new",
    [
        ("# why", "# because"),
        ("  # why", ""),
        ('"""Doc."""', '"""Other words, "quoted"."""'),
        ('"""Module."""', "'Module'"),
        ("self, x: int", "self,\n        x: int"),
        ("\n\n\nclass", "\nclass"),
    ],
)
def test_words_and_line_breaks_are_no_other_code(old, new):
    assert old in SOURCE
    assert code.normalised(SOURCE.replace(old, new)) == code.normalised(SOURCE)


@pytest.mark.parametrize(
    "old, new",
    [
        ("x + 1", "x + 2"),
        ("# no comment", "# a comment"),
        ("import math", "import cmath"),
        ("return", "yield"),
        ('"""Doc of f."""\n        return', 'x = """Doc of f."""\n        return'),
    ],
)
def test_an_edit_is(old, new):
    assert old in SOURCE
    assert code.normalised(SOURCE.replace(old, new)) != code.normalised(SOURCE)


def test_a_run_is_made_of_what_it_imports_and_of_its_own_method_alone():
    found = code.of_training("fsd")
    assert {
        "fsd.distill.kernels.kl",
        "fsd.train.loop",
        "fsd.models.head",
        "fsd.boxes",
    } <= found.keys()
    assert {"fsd.distill.fsd", "fsd.distill", "fsd.distill.base"} <= found.keys()
    assert "fsd.distill.pkd" not in found
    assert not {n for n in found if n.split(".")[1] in ("report", "cli", "tracking", "experiment")}
    assert all(len(digest) == 16 for digest in found.values())
    assert code.changed(found) == []
    gone = found | {"fsd.train.loop": "0" * 16, "fsd.gone": "1"}
    assert code.changed(gone) == ["fsd.train.loop", "fsd.gone"]


def test_an_evaluation_is_not_made_of_training():
    found = code.of_evaluation()
    assert {"fsd.evaluate.coco_ap", "fsd.models.postprocess", "fsd.data.store"} <= found.keys()
    assert not {n for n in found if n.split(".")[1] in ("train", "distill")}
