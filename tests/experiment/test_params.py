"""params.yaml: what is accepted, what is refused in one sentence, and what it expands to."""

import copy
from pathlib import Path

import pytest
import yaml

from fsd import distill
from fsd.experiment import params, runs

LOADED = yaml.load(Path("params.yaml").read_text(encoding="utf-8"), Loader=params._Loader)


def changed(path: str, value):
    """The committed params.yaml with one entry set (or, with value None, removed)."""
    raw = copy.deepcopy(LOADED)
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return raw


def test_committed_file_is_valid_and_every_method_builds():
    loaded = params.load()
    for method in loaded.methods.values():
        distill.build(method.model_dump(), [8, 8, 8], [16, 16, 16])


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("experiments.smoke.methods", ["baseline", "cwdd"], "did you mean 'cwd'?"),
        ("experiments.smoke.datasets", ["figurs"], "did you mean 'figures'?"),
        ("experiments.smoke.seeds", [0, 0], "seeds names 0 twice"),
        ("experiments.smoke.seeds", ["0"], "should be a valid integer"),
        ("experiments.smoke.seeds", [-1], "greater than or equal to 0"),
        ("experiments.smoke.name", "smok", "write 'smoke'"),
        ("experiments.smoke.seed", [1], "did you mean 'seeds'?"),
        ("datasets.figures.student.size", "yolox_q", "yolox_nano"),
        ("datasets.figures.student.depth", None, "depth, width and depthwise"),
        ("datasets.figures.student.width", -0.5, "greater than 0"),
        ("datasets.figures.student.train.epochs", "many", "should be a valid integer"),
        ("datasets.figures.student.train.epoch", 3, "did you mean 'epochs'?"),
        ("datasets.figures.student.train.lr", None, "is missing"),
        ("datasets.figures.student.train.warmup_epochs", 50, "exceed epochs"),
        ("datasets.figures.student.train.select", "best_val", "validate_every"),
        ("datasets.figures.data.input_px", 200, "multiple of 32"),
        ("datasets.figures.data.images", {"train": 5}, "train and test"),
        ("datasets.figures.data.format", "vok", "'scenes', 'voc', 'coco' or 'yolo'"),
        ("datasets.fall_nano.data.source", None, "needs source"),
        ("datasets.figures.recipe", "yolo", "did you mean 'yolox'?"),
        ("datasets.figures.evaluate.nms_iou", 65, "less than or equal to 1"),
        ("methods.cwd.distill", "cdw", "did you mean 'cwd'?"),
        ("methods.teacher", {"distill": "cwd"}, "reserved"),
        ("recipes.yolox.channels", "bgrr", "'bgr' or 'rgb'"),
        ("method", {}, "did you mean 'methods'?"),
        (
            "active",
            {"name": "x", "datasets": ["figures"], "methods": ["cwd"], "seeds": [0]},
            "*smok",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_the_way_out(path, value, says):
    with pytest.raises(params.ParamsError) as caught:
        params.parse(changed(path, value))
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert text.startswith("params.yaml: ")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"tua": 1.0}, "'tua'"),
        ({"tau": None}, "tau"),
        ({"tau": "hot"}, "tau must be a number"),
        ({"tau": 0.0}, "above 0"),
        ({"form": "papre"}, "feature, paper"),
        ({"site": "stem"}, "stems, neck"),
    ],
)
def test_a_mistake_in_a_method_names_the_hyper_parameter(entry, says):
    config = dict(LOADED["methods"]["cwd"]) | entry
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(ValueError, match=says):
        distill.check(config)


def test_methods_are_found_without_importing_them():
    assert params.distillers() == distill.names()


def test_yaml_reads_as_people_write_it(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("a: 1e-5\n")
    assert yaml.load(file.read_text(), Loader=params._Loader) == {"a": 1e-5}
    for text, says in (
        ("a: 1\nb: 2\na: 3\n", "key 'a' is given twice (second time in line 3)"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: *b\n", "not valid YAML"),
        ("- 1\n", "should hold a mapping"),
    ):
        file.write_text(text)
        with pytest.raises(params.ParamsError) as caught:
            params.load(file)
        assert says in str(caught.value)
    with pytest.raises(params.ParamsError, match="root folder"):
        params.load(tmp_path / "absent.yaml")


def test_merged_keys_may_be_overridden():
    text = "base: &b {x: 1, y: 2}\nnew: {<<: *b, y: 3}\n"
    assert yaml.load(text, Loader=params._Loader)["new"] == {"x": 1, "y": 3}


def test_runs_are_teachers_then_the_matrix():
    loaded = params.load()
    chosen = loaded.experiments["main"]
    expanded = runs.runs(chosen)
    assert [run.dataset for run in expanded if run.is_teacher] == chosen.datasets
    matrix = [run for run in expanded if not run.is_teacher]
    size = len(chosen.datasets) * len(chosen.methods) * len(chosen.seeds)
    assert len(matrix) == len(set(matrix)) == size
    assert len({run.folder for run in expanded} | {run.plan for run in expanded}) == 2 * len(
        expanded
    )


def test_a_plan_changes_with_what_shapes_the_run_and_with_nothing_else():
    def plan(raw, method="cwd"):
        return runs.resolve(params.parse(raw), runs.Run("figures", method, 0))

    base = plan(LOADED)
    assert plan(copy.deepcopy(LOADED)) == base
    assert plan(changed("methods.cwd.tau", 2.0)) != base
    assert plan(changed("methods.fsd_release.temp", 2.0)) == base
    assert plan(changed("datasets.figures.student.train.lr", 0.1)) != base
    assert plan(changed("datasets.figures.evaluate.nms_iou", 0.5)) == base
    assert plan(changed("datasets.fall_nano.data.input_px", 64)) == base
    teacher = plan(LOADED, params.TEACHER)
    assert plan(changed("methods.cwd.tau", 2.0), params.TEACHER) == teacher


def test_plan_files_are_touched_only_when_they_change(tmp_path, monkeypatch):
    loaded = params.load()
    monkeypatch.chdir(tmp_path)
    runs.write_plans(loaded, loaded.active)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert before
    runs.write_plans(loaded, loaded.active)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("figurez", "cwd", 0), "did you mean 'figures'?"),
        (("figures", "cwf", 0), "did you mean 'cwd'?"),
        (("figures", "teacher", 1), "one run"),
        (("figures", "cwd", -1), "0 or more"),
    ],
)
def test_asking_for_a_run_that_is_not_there(arguments, says):
    with pytest.raises(params.ParamsError) as caught:
        runs.find(params.load(), *arguments)
    assert says in str(caught.value)


def test_every_paper_number_has_a_home_in_the_matrix():
    from fsd.report.collect import reference

    loaded = params.load()
    papers = {dataset.paper for dataset in loaded.datasets.values()}
    values = reference()
    assert values
    for dataset, _, metric in values:
        assert dataset in papers
        assert metric in ("ap", "delta_ap")
    assert any(method in loaded.methods for _, method, _ in values)
