"""What the pages tell to type exists; the README's thread, typed, says what the README says."""

import re
import shlex
from pathlib import Path

import pytest
from test_pipeline import copy, tool  # noqa: F401 (copy is a fixture)
from typer.main import get_command

from fsd import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STAND_FOR = {"$W": "weights.pt", "NAME": "figures", "fall_nano": "figures", "D": "figures"}


def commands(page: Path) -> list[str]:
    """Code lines (indented, fenced or between backticks) that call `fsd`, without their comments."""
    text = page.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`(fsd [^`]+)`", text)
    lines = [re.sub(r"\s+#.*", "", line).removeprefix("$ ") for line in lines]
    return [line for line in lines if re.match(r"fsd [a-z]", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fsd_command_is_one(page):
    known = get_command(cli.app).commands
    for line in commands(page):
        name, *words = shlex.split(line)[1:]
        assert name in known, line
        words = [STAND_FOR.get(word, word) for word in words if word not in ("<stage>", "...")]
        required = [p for p in known[name].params if p.required]
        if words or not required:  # a bare name in running text is a name
            if any(w in ("WEIGHTS", "RUN", "IMAGES...") for w in words):
                continue
            known[name].make_context(name, words)  # a wrong option or value raises


def test_the_pages_name_files_that_exist():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
@pytest.mark.docs
def test_the_readme_s_thread(copy):  # noqa: F811
    """The commands of the README on the tiny experiment, as a new user types them."""
    path = copy / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("active: *smoke", "active: *tiny")
    path.write_text(text, encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in ("fsd check", "snakemake --cores all", "dvc repro", "fsd show"):
        assert f"\n    {line}" in readme
    assert "figures_tiny/cwd/0  to do" in tool(copy, "fsd", "check")
    tool(copy, "snakemake", "--cores", "all")
    for name in ("tables/tiny.md", "tables/tiny.csv", "tables/tiny.tex", "report/tiny.html"):
        assert (copy / "results" / name).stat().st_size > 0
    run = copy / "results/runs/figures_tiny/cwd/0"
    for name in ("weights.pt", "log.jsonl", "detections.json", "metrics.json", "provenance.json"):
        assert (run / name).exists()
    assert "Nothing to be done" in tool(copy, "snakemake", "--cores", "all")
    tool(copy, "dvc", "repro")
    said = tool(copy, "fsd", "show")
    assert "| figures_tiny | cwd" in said and "MLflow" in said and "tiny.html" in said
    assert "done; trained and evaluated" in tool(copy, "fsd", "explain", "figures_tiny/cwd/0")
    assert "baseline" in tool(copy, "fsd", "methods")
    tool(copy, "fsd", "audit", "--dataset", "figures_tiny")
    weights = "results/runs/figures_tiny/cwd/0/weights.pt"
    assert "GFLOPs" in tool(copy, "fsd", "cost", weights)
    tool(copy, "fsd", "export", weights, "--format", "onnx")
