"""MLflow is a mirror: idempotent, continued after a resume, never in the way."""

import base64
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from micro import micro, run
from mlflow import MlflowClient

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


def test_the_load_of_the_machine_is_logged(loaded, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = open_tracker(loaded, "fgd")
    tracker.watch()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = tracker.client.get_run(tracker.run_id).data.metrics
        if "system/cpu_utilization_percentage" in found:
            break
        time.sleep(0.1)
    tracker.finish()
    assert "system/cpu_utilization_percentage" in found
    assert not tracker.monitor._process or not tracker.monitor._process.is_alive()


WRITER = """
import sys
from micro import micro, run
from mlflow import MlflowClient
from fsd import runs, tracking
method, epochs = sys.argv[1], int(sys.argv[2])
loaded = micro()
plan = runs.resolve(loaded, run("cwd"))
tracker = tracking.Tracker(loaded, run("cwd", int(method)), plan, f"key-{method}")
for last in range(1, epochs + 1):
    tracker.log([{"epoch": e, "loss": 1.0 / e} for e in range(1, last + 1)])
tracker.finish({"ap": 0.5})
assert not tracking._off, tracking._off
"""


def test_eight_runs_that_write_at_once_lose_nothing(loaded, tmp_path):
    epochs = 6
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(n), str(epochs)], cwd=tmp_path, env=environment
        )
        for n in range(8)
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")  # by its path: names are remembered
    found = client.search_runs([client.get_experiment_by_name("other").experiment_id])
    assert sorted(int(one.data.tags["seed"]) for one in found) == list(range(8))
    for one in found:
        steps = [point.step for point in client.get_metric_history(one.info.run_id, "loss")]
        assert steps == list(range(1, epochs + 1))
        assert one.data.metrics["ap"] == 0.5 and one.info.status == "FINISHED"


def test_the_paper_and_the_table_stand_beside_the_runs(loaded, tmp_path):
    open_tracker(loaded, "pkd").finish({"ap": 0.5}, {"verdict": "inconclusive"})
    table = tmp_path / "table.md"
    table.write_text("| method | AP |")
    for _ in range(2):  # the second time changes nothing
        tracking.publish("other", {"micro/fsd/paper": {"ap": 0.731}}, [table], "the table")
    client = tracking._client()
    experiment = client.get_experiment_by_name("other")
    assert experiment.tags["mlflow.note.content"] == "the table"
    found = client.search_runs([experiment.experiment_id])
    kinds = {
        kind: [r for r in found if r.data.tags["kind"] == kind] for kind in ("paper", "report")
    }
    assert [r.data.metrics for r in kinds["paper"]] == [{"ap": 0.731}]
    assert [r.info.run_name for r in kinds["paper"]] == ["micro/fsd/paper"]
    (report,) = kinds["report"]
    assert [f.path for f in client.list_artifacts(report.info.run_id)] == ["table.md"]
    (pkd,) = [r for r in found if r.data.tags["key"] == "key-pkd"]
    assert pkd.data.tags["verdict"] == "inconclusive"
    assert not tracking._off
