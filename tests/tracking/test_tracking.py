"""MLflow is a mirror: idempotent, continued after a resume, never in the way."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import write_manifest, write_paper, write_run
from micro import micro, run
from mlflow import MlflowClient
from places import HELPERS

from fsd import tracking
from fsd.experiment import params, runs
from fsd.experiment.schema import Experiment
from fsd.report import mirror, stage
from fsd.tracking import view

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
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
from fsd import tracking
from fsd.experiment import runs
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
    environment = dict(os.environ, PYTHONPATH=str(HELPERS))
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
    paper = [mirror.Reference("micro/fsd/paper", "micro", "fsd", {"ap": 0.731})]
    for _ in range(2):  # the second time changes nothing
        mirror.publish("other", paper, [table], "the table", [table])
    client = tracking.client()
    experiment = client.get_experiment_by_name("other")
    assert experiment.tags["mlflow.note.content"] == "the table"
    found = client.search_runs([experiment.experiment_id])
    kinds = {
        kind: [r for r in found if r.data.tags["kind"] == kind] for kind in ("paper", "report")
    }
    assert [r.data.metrics for r in kinds["paper"]] == [{"ap": 0.731}]
    assert [r.info.run_name for r in kinds["paper"]] == ["micro/fsd/paper"]
    (report,) = kinds["report"]
    assert report.info.run_name == "tables and figures"
    assert [f.path for f in client.list_artifacts(report.info.run_id)] == ["figures", "table.md"]
    (picture,) = client.list_artifacts(report.info.run_id, "figures")
    assert picture.path == "figures/table.md"
    (pkd,) = [r for r in found if r.data.tags["key"] == "key-pkd"]
    assert pkd.data.tags["verdict"] == "inconclusive"
    assert not tracking._off


CHOSEN = Experiment(name="trial", datasets=["micro"], methods=["baseline", "fsd"], seeds=[0])


@pytest.fixture
def reported(loaded, tmp_path, monkeypatch):
    """The report of made-up runs of `trial`: MLflow knows nothing of them before."""
    # By its path: this process would remember another test's database under the relative name.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    entry = {"dataset": "fall", "methods": ["fsd"], "unit": "fraction", "where": "here"}
    values = [
        entry | {"metric": "ap", "value": 0.731},
        entry | {"metric": "delta_ap", "value": 0.016},
    ]
    write_paper(values)
    write_manifest("micro")
    params = micro(datasets__micro__paper="fall", experiments__trial=CHOSEN.model_dump())
    for method, ap in (("teacher", 0.8), ("baseline", 0.5123456), ("fsd", 0.6)):
        write_run(params, run(method), ap)
    stage.report(params, CHOSEN, "test")
    return params


def test_an_imported_run_keeps_its_times_and_has_short_names_and_numbers(reported):
    client = tracking.client()
    found = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    named = {one.info.run_name: one for one in found}
    assert set(named) == {"teacher/0", "baseline/0", "fsd/0", "fsd/paper", "tables and figures"}
    assert named["baseline/0"].data.metrics["ap"] == 0.5123
    assert named["fsd/0"].data.metrics["delta_ap"] == 0.0877
    assert named["fsd/0"].data.tags["verdict"] == "inconclusive"
    times = {
        datetime.fromtimestamp(moment / 1000, UTC).isoformat()
        for moment in (named["fsd/0"].info.start_time, named["fsd/0"].info.end_time)
    }
    assert times == {"2026-11-22T16:39:30+00:00", "2026-11-22T16:54:05+00:00"}
    pictures = client.list_artifacts(named["tables and figures"].info.run_id, "figures")
    assert "figures/micro-attention.jpg" in [picture.path for picture in pictures]
    note = client.get_experiment_by_name("trial").tags["mlflow.note.content"]
    assert "| micro | fsd | 1/1 | 60.0 |" in note  # unpadded


def test_a_run_of_two_experiments_is_shown_in_the_one_reported(reported):
    both = Experiment(name="second", datasets=["micro"], methods=["baseline"], seeds=[0])
    raw = reported.model_dump() | {"active": reported.active.model_dump()}
    raw["experiments"]["second"] = both.model_dump()
    stage.report(params.parse(raw), both, "test")
    client = tracking.client()
    for name, count in (("trial", 5), ("second", 3)):
        assert len(client.search_runs([client.get_experiment_by_name(name).experiment_id])) == count


def test_names_say_the_data_set_where_there_are_several(loaded):
    assert tracking.shown_name(loaded, "main", runs.Run("fall", "fsd", 0)) == "fall/fsd/0"
    assert tracking.shown_name(loaded, "fall_cpu", runs.Run("fall_nano", "fsd", 0)) == "fsd/0"


def test_an_older_view_is_replaced_and_the_readers_own_is_kept(reported):
    client = tracking.client()
    where = client.get_experiment_by_name("trial").experiment_id
    for version, kept in ((view.VERSION, True), ("1", False)):
        client.set_experiment_tag(where, view.VERSION_TAG, version)
        client.set_experiment_tag(where, view.TAG, "another")
        tracking.link("trial")
        assert (client.get_experiment(where).tags[view.TAG] == "another") == kept


# In the browser


class Cells(HTMLParser):
    """Text of every cell of MLflow's table: (row, column) -> text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.row = self.column = None
        self.found: dict[tuple[str, str], str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        named = dict(attributes)
        if named.get("role") == "row":
            self.row = named.get("row-index")
        if "col-id" in named:
            self.column = named["col-id"] if named.get("role") == "gridcell" else None

    def handle_data(self, data: str) -> None:
        if self.row is not None and self.column is not None:
            key = self.row, self.column
            self.found[key] = self.found.get(key, "") + data


@pytest.fixture
def server(reported):
    """The command that the pipeline prints, on a free port; ends with all its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"{tracking.ui_command()} --port {port}"
    with Path("server.log").open("w") as log:
        running = subprocess.Popen(
            command, shell=True, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and running.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.5)
        else:
            raise AssertionError(Path("server.log").read_text())
        yield tracking.link("trial").replace(":5000", f":{port}")
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(30)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_printed_link_shows_the_results(server, tmp_path):
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000"),
            *("--virtual-time-budget=60000", server),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = Cells(done.stdout).found
    names = {
        re.sub("^#[0-9a-f]{6}", "", text): row  # a colour that only the screen reader says
        for (row, column), text in found.items()
        if "Run Name" in column
    }
    assert set(names) == {"teacher/0", "baseline/0", "fsd/0", "fsd/paper", "tables and figures"}
    shown = {column: found[names["fsd/0"], column] for column in view.COLUMNS}
    assert list(shown.values()) == ["0.6", "0.6", "0.0877", "0.016", "inconclusive", "0.731"]
    assert found[names["fsd/paper"], "metrics.`delta_ap`"] == "0.016"
    assert names["teacher/0"] == "0"  # the best AP first


def test_names_of_any_kind_are_given_to_mlflow_as_it_takes_them(loaded):
    names = ["R&D", "R-D", "cat (black)", "dog's toy", "R/D", "R@D", "猫", "犬", ""]
    found = tracking.metric_names(names)
    assert list(found) == names and len(set(found.values())) == len(names)
    assert found["R-D"] == "R-D"
    tracker = open_tracker(loaded, "fgd")
    tracker.finish({f"ap/{name}": 0.5 for name in found.values()})
    assert not tracking._off
    assert tracker.client.get_run(tracker.run_id).data.metrics[f"ap/{found['R&D']}"] == 0.5
