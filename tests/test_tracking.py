"""MLflow is a mirror: idempotent, continued after a resume, never in the way."""

import base64
import json
import zlib

import pytest
from micro import micro, run

from fsd import runs, tracking

LOG = [{"epoch": e, "loss": 1.0 / e, "terms": {"det/iou": 2.0 / e}} for e in (1, 2, 3)]


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "_off", [])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return micro()


def open_tracker(loaded, method="cwd"):
    return tracking.Tracker(loaded, run(method), runs.resolve(loaded, run(method)), f"key-{method}")


def test_logging_again_and_resuming_never_doubles_a_point(loaded):
    tracker = open_tracker(loaded)
    tracker.log(LOG[:2])
    tracker.log(LOG[:2])
    resumed = open_tracker(loaded)  # another process, after a kill
    assert resumed.run_id == tracker.run_id
    resumed.log(LOG)
    resumed.finish({"ap": 0.5})
    resumed.finish({"ap": 0.5})
    client = resumed.client
    assert [p.step for p in client.get_metric_history(tracker.run_id, "loss")] == [1, 2, 3]
    assert len(client.get_metric_history(tracker.run_id, "ap")) == 1
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["method"] == "cwd"
    assert found.data.params["distill/tau"] == "1.0"
    assert found.inputs.dataset_inputs[0].dataset.name == "micro"
    assert tracking.link("other").startswith("http://127.0.0.1:5000/#/experiments/")
    experiment = client.get_experiment_by_name("other")
    view = json.loads(experiment.tags["mlflow.sharedViewState.results"])["state"]
    columns = json.loads(zlib.decompress(base64.b64decode(view.removeprefix("deflate;"))))
    assert "metrics.`ap`" in columns["selectedColumns"]


def test_an_unreachable_server_is_said_once_and_stops_nothing(loaded, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for method in ("cwd", "baseline"):
        tracker = open_tracker(loaded, method)
        tracker.log(LOG)
        tracker.finish({"ap": 0.5})
    assert capsys.readouterr().out.count("does not answer") == 1
    assert tracking.link("smoke") is None


def test_a_cluster_job_leaves_sqlite_alone(loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    open_tracker(loaded).log(LOG)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_run_is_shown_under_the_experiment_that_holds_it(loaded):
    assert tracking.experiment_of(loaded, runs.Run("figures", "cwd", 0)) == "smoke"
    assert tracking.experiment_of(loaded, runs.teacher_run("voc2007")) == "main"
    assert tracking.experiment_of(loaded, run("cwd")) == "other"
