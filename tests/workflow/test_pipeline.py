"""Snakemake, DVC and the command line agree on the runs; the whole thread runs (slow)."""

import json
import re
import sys
import tomllib

import pytest
import yaml
from places import ROOT
from tree import commands, tool

from fsd.experiment import params, runs


def expected(chosen: params.Experiment) -> set[str]:
    """The matrix written out, by no code of either tool."""
    out = {f"fsd report --experiment {chosen.name}"}
    for dataset in chosen.datasets:
        out |= {f"fsd prepare --dataset {dataset}", f"fsd teacher --dataset {dataset}"}
        out |= {f"fsd evaluate --dataset {dataset} --method teacher --seed 0"}
    for run in runs.students(chosen):
        which = f"--dataset {run.dataset} --method {run.method} --seed {run.seed}"
        out |= {f"fsd train {which}", f"fsd evaluate {which}"}
    return out


@pytest.mark.parametrize("active", ["smoke", "main"])
def test_both_tools_expand_to_the_same_commands(copy, active):
    text = (copy / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^active: \*\w+", f"active: *{active}", text, flags=re.MULTILINE)
    (copy / "params.yaml").write_text(text, encoding="utf-8")
    wanted = expected(params.load(copy / "params.yaml").active)
    assert (
        commands(tool(copy, "snakemake", "--dry-run", "--printshellcmds", "--cores", "1")) == wanted
    )
    listed = """
from dvc.repo import Repo
for stage in Repo(".").index.stages:
    print(stage.cmd)
"""
    assert commands(tool(copy, sys.executable, "-c", listed)) == wanted


def test_the_workflow_s_file_can_be_named_and_the_experiment_too(copy):
    chosen = params.load(copy / "params.yaml").experiments["tiny"]
    named = ("--snakefile", "workflow/Snakefile", "--config", "experiment=tiny")
    dry = tool(copy, "snakemake", "--dry-run", "--printshellcmds", "--cores", "1", *named)
    assert commands(dry) == expected(chosen)
    assert "workflow specific profile profiles/default" in dry


def test_the_workflow_catalog_finds_what_it_asks_for():
    """Its conditions for "standardized usage": file names, and a README that says the two words."""
    assert (ROOT / "workflow/Snakefile").is_file() and not (ROOT / "Snakefile").exists()
    assert all(path.suffix == ".smk" for path in (ROOT / "workflow/rules").iterdir())
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme and "workflow" in readme
    assert "params.yaml" in (ROOT / "config/README.md").read_text(encoding="utf-8")
    said = (ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8")
    usage = yaml.safe_load(said)["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}


def test_the_citation_agrees_with_the_package_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for key in ("version", "license"):
        assert cited[key] == project[key]
    (paper,) = cited["references"]
    known = yaml.safe_load((ROOT / "paper/reference.yaml").read_text(encoding="utf-8"))["citation"]
    facts = [author["family-names"] for author in paper["authors"]]
    facts += [paper["title"], paper["journal"], f"{paper['volume']}:{paper['start']}", paper["doi"]]
    assert all(fact in known for fact in [*facts, str(paper["year"])])


def test_snakemake_says_one_sentence_for_a_mistake(copy):
    path = copy / "params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("methods: [baseline,", "methods: [basline,", 1), encoding="utf-8")
    output = tool(copy, "snakemake", "--dry-run", ok=False)
    assert "did you mean 'baseline'?" in output
    assert "Traceback" not in output
    output = tool(copy, "fsd", "check", ok=False)
    assert "did you mean 'baseline'?" in output


def test_the_pages_draw_the_graph_that_snakemake_draws(copy):
    drawn = tool(copy, "snakemake", "--rulegraph", "mermaid-js")
    page = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    assert _graph(page) == _graph(drawn) != set()


def _graph(text: str) -> set[tuple[str, str]]:
    """Pairs of rule names, one edge each."""
    names = dict(re.findall(r"^\s*(\w+)\[(\w+)\]", text, flags=re.MULTILINE))
    edges = re.findall(r"^\s*(id\d+) --> (id\d+)", text, flags=re.MULTILINE)
    return {(names[a], names[b]) for a, b in edges}


def test_lint_asks_for_nothing_but_containers(copy):
    """The environment is the locked .venv, for all rules: no rule names a container of its own."""
    said = tool(copy, "snakemake", "--lint", ok=False)
    assert set(re.findall(r"^Lints for (\w+)", said, flags=re.MULTILINE)) == {"rule"}
    assert set(re.findall(r"^    \* (.*)", said, flags=re.MULTILINE)) == {
        "Specify a conda environment or container for each rule.:"
    }


def test_slurm_profile_is_found_by_its_name(copy):
    assert (ROOT / "slurm").resolve() == ROOT / "workflow/profiles/slurm"
    assert (ROOT / "slurm/profile.yaml").exists()


@pytest.mark.slow
def test_the_thread_end_to_end_with_both_tools_and_a_change_there_and_back(copy):
    path = copy / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("active: *smoke", "active: *tiny")
    text = text.replace("methods: [baseline, cwd, fsd_release]", "methods: [baseline, cwd]")
    path.write_text(text, encoding="utf-8")
    tool(copy, "snakemake", "--cores", "all")
    table = (copy / "results/tables/tiny.csv").read_bytes()
    assert table.count(b"\n") == 4

    def key() -> str:
        made = json.loads((copy / "results/tables/tiny.provenance.json").read_text())
        return made["runs"]["figures_tiny/cwd/0"]["key"]

    first = key()
    assert "Nothing to be done" in tool(copy, "snakemake", "--cores", "all")
    output = tool(copy, "dvc", "repro")
    assert output.count("already trained") == 3
    assert (copy / "results/tables/tiny.csv").read_bytes() == table
    assert "up to date" in tool(copy, "dvc", "repro")
    path.write_text(text.replace("tau: 1.0", "tau: 4.0"), encoding="utf-8")
    dry = tool(copy, "snakemake", "--dry-run", "--printshellcmds", "--cores", "1")
    assert commands(dry) == {
        "fsd train --dataset figures_tiny --method cwd --seed 0",
        "fsd evaluate --dataset figures_tiny --method cwd --seed 0",
        "fsd report --experiment tiny",
    }
    output = tool(copy, "dvc", "repro")
    assert "already trained" not in output
    assert key() != first
    path.write_text(text, encoding="utf-8")
    output = tool(copy, "snakemake", "--cores", "all")
    assert output.count("already trained") == 1
    assert key() == first
    assert (copy / "results/tables/tiny.csv").read_bytes() == table
