"""A source or initial weights that hold other bytes are noticed by everything, whatever their time."""

import os
import shutil

import pytest
import tree
from source_files import voc_files, write_folder, write_tar, xml
from tree import commands, tool

from fsd.experiment import params, runs, sources
from fsd.train import explain

OLD, NEW = (1e9, 1e9), (1.9e9, 1.9e9)
PREPARE = "fsd prepare --dataset micro"


def files(note: str = "") -> dict[str, bytes]:
    made = voc_files(**{f"i{k}": xml(("cat", 2, 1, 5, 6)) for k in range(4)})
    made["ImageSets/Main/train.txt"] = b"i0\ni1\n"
    made["ImageSets/Main/test.txt"] = b"i2\ni3\n"
    made["note.txt"] = note.encode()
    return made


@pytest.fixture(params=["folder", "tar"])
def folder(request, tmp_path, monkeypatch):
    """A tree whose data set comes from files, prepared."""
    place = tree.plant(tmp_path / "tree")
    tree.micro(place)
    raw = tree.yaml.safe_load((place / "params.yaml").read_text())
    source = "data/raw/pets" if request.param == "folder" else "data/raw/pets.tar"
    data = {"format": "voc", "source": source, "classes": ["cat", "dog"], "input_px": 64}
    raw["datasets"]["micro"]["data"] = data | {"splits": {"train": "train", "test": "test"}}
    raw["datasets"]["micro"]["leaks"] = "report"
    (place / "params.yaml").write_text(tree.yaml.safe_dump(raw))
    monkeypatch.chdir(place)
    put(request.param, files())
    tool(place, "fsd", "plan")
    tool(place, *PREPARE.split())
    return request.param, place


def put(kind: str, content: dict[str, bytes]) -> None:
    if kind == "folder":
        shutil.rmtree("data/raw/pets", ignore_errors=True)
        write_folder(sources.Path("data/raw/pets"), content)
    else:
        write_tar(sources.Path("data/raw/pets.tar"), content)


def touch(time) -> None:
    for path in sources.Path("data/raw").rglob("*"):
        os.utime(path, time)


def planned(place) -> set[str]:
    return commands(tool(place, "snakemake", "--dry-run", "--printshellcmds", "--cores", "1"))


def test_a_touched_source_is_no_other_one(folder):
    _, place = folder
    for time in (OLD, NEW, (4e9, 4e9)):
        touch(time)
        assert PREPARE not in planned(place)
    loaded = params.load()
    assert sources.changed(loaded, "micro") is None


@pytest.mark.parametrize("time", [OLD, None, NEW], ids=["older", "now", "newer"])
def test_an_exchanged_label_is_noticed_by_all(folder, time):
    kind, place = folder
    content = files()
    content["Annotations/i1.xml"] = xml(("dog", 2, 1, 5, 6))
    put(kind, content)
    if time:
        touch(time)
    loaded = params.load()
    assert "has changed since micro was prepared" in sources.changed(loaded, "micro")
    run = runs.teacher_run("micro")
    assert explain.standing(loaded, run).state == "outdated"
    assert PREPARE in planned(place)
    assert "data/raw" in tool(place, "dvc", "status", "plan")
    tool(place, "dvc", "repro", "plan")
    status = tool(place, "dvc", "status")
    assert "results/plan/micro/data.json" in status


def test_other_initial_weights_change_the_plans(folder):
    _, place = folder
    weights = place / "data/raw/start.npz"
    raw = tree.yaml.safe_load((place / "params.yaml").read_text())
    raw["datasets"]["micro"]["teacher"]["init"] = {"weights": "data/raw/start.npz", "partial": True}
    (place / "params.yaml").write_text(tree.yaml.safe_dump(raw))
    seen = set()
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        os.utime(weights, OLD)
        tool(place, "fsd", "plan")
        seen.add((place / runs.teacher_run("micro").plan).read_text())
    assert len(seen) == 2
