"""What was finished before the code was rearranged stays finished: nothing is made anew, tables read.

tests/golden/finished_tree.tar.xz holds such a tree (how it was made: tests/golden/README.md). Whoever
raises SCHEMA_VERSION, so that every run is meant to be trained anew, makes it anew as well.
"""

import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import tree
from places import GOLDEN, ROOT
from tree import tool

from fsd.data import store
from fsd.experiment import params, runs
from fsd.files import MEMORY, sha256
from fsd.report import columns, stage
from fsd.train import explain

PUBLISHED = sorted(path.stem for path in (ROOT / "results/published").glob("*.csv"))


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The finished tree, its own params.yaml and paper beside today's code; every plan the newest file."""
    folder = tree.plant(tmp_path / "tree")
    with tarfile.open(GOLDEN / "finished_tree.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    for path in (folder / "results/plan").rglob("*.json"):
        os.utime(path)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file that a stage makes."""
    places = (folder / "data", folder / "results")
    files = (path for place in places for path in place.rglob("*") if path.is_file())
    files = (path for path in files if path.name != MEMORY)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def test_the_format_of_generated_scenes_has_its_old_name_there(old):
    assert "format: figures" in (old / "params.yaml").read_text(encoding="utf-8")


def test_every_key_is_the_one_that_today_s_code_works_out(old):
    loaded = params.load("params.yaml")
    manifest = json.loads(runs.manifest_path("micro").read_text(encoding="utf-8"))
    assert store.key(loaded.datasets["micro"].data, manifest["source"]) == manifest["key"]
    taught_by = None
    for run in runs.runs(loaded.active):
        made = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))
        teacher = taught_by if run.method == "cwd" else None
        assert made["key"] == runs.key(runs.resolve(loaded, run), manifest["key"], teacher)
        assert sha256(run.folder / "weights.pt") == made["weights_sha256"]
        taught_by = taught_by or made["key"]  # the teacher comes first
    for path, plan in runs.plans(loaded, loaded.active).items():
        assert json.loads(path.read_text(encoding="utf-8")) == plan


def test_explain_says_done(old):
    loaded = params.load("params.yaml")
    for run in runs.runs(loaded.active):
        assert explain.standing(loaded, run).state == "done"
    assert "micro/cwd/0: done" in tool(old, "fsd", "explain", "micro/cwd/0")


def test_snakemake_has_nothing_to_do(old):
    before = contents(old)
    assert "Nothing to be done" in tool(old, "snakemake", "--dry-run", "--cores", "1")
    assert contents(old) == before


def test_dvc_writes_the_plans_again_and_makes_nothing(old):
    """`plan` names files of code as its dependencies, and those have moved."""
    before = contents(old)
    status = json.loads(tool(old, "dvc", "status", "--json"))
    assert set(status) == {"plan"}
    assert all("changed outs" not in what for what in status["plan"])
    said = tool(old, "dvc", "repro")
    assert re.findall(r"Running stage '(\S+)'", said) == ["plan"]
    assert contents(old) == before
    assert "up to date" in tool(old, "dvc", "repro")


def test_published_tables_are_there():
    assert set(PUBLISHED) == {"bccd_cpu", "controls", "fall_cpu"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table_is_read_and_shown_as_it_was_published(name, tmp_path, monkeypatch):
    """By every column of that time that there still is."""
    monkeypatch.chdir(tmp_path)
    runs.table_path(name, "csv").parent.mkdir(parents=True)
    shutil.copy(ROOT / f"results/published/{name}.csv", runs.table_path(name, "csv"))
    page = (ROOT / f"results/published/{name}.md").read_text(encoding="utf-8")
    shown = _first_table(page)
    found = stage.read_table(name)
    assert [line["method"] for line in found] == [line["method"] for line in shown]
    assert all(0 < line["ap_mean"] < 1 for line in found)
    loaded = params.load(ROOT / "params.yaml")
    today = columns.main_columns(runs.experiment(loaded, name), loaded)
    common = [column for column in today if column.title in shown[0]]
    assert {column.title for column in common} >= {"data set", "method", "n", "AP", "p (Holm)"}
    for line, old_line in zip(
        columns.lines_of(pd.read_csv(runs.table_path(name, "csv"))), shown, strict=True
    ):
        for column in common:
            assert column.text(line) == old_line[column.title]


def _first_table(page: str) -> list[dict[str, str]]:
    """The lines of the first table of a Markdown page."""
    lines = page[page.index("|") :].partition("\n\n")[0].splitlines()
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, line, strict=True)) for line in body]
