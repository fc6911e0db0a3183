"""MLflow as a mirror: it shows what the run folders hold, and nothing is ever read back from it.

Logging is idempotent: a run is found again by the key of its store, and its curves continue after
the last step logged. So live logging, the repair of a killed run and the import of a cluster's runs
are one function. Whatever goes wrong here is said once, and training goes on.
"""

import base64
import fcntl
import json
import logging
import os
import sys
import time
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from fsd.console import console
from fsd.params import Params
from fsd.runs import Run, digest, students, teacher_run

DEFAULT_URI = "sqlite:///mlflow.db"
VIEW_TAG, VIEW = "mlflow.sharedViewState", "results"
_off: list[str] = []  # why this process does not track, once that is so


def uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def experiment_of(params: Params, run: Run) -> str:
    """The experiment a run is shown under: the active one if it holds it, else the first that does."""
    for chosen in (params.active, *params.experiments.values()):
        if run in students(chosen) or run in map(teacher_run, chosen.datasets):
            return chosen.name
    return "other"


def _switch_off(reason: str) -> None:
    if not _off:
        console.print(f"MLflow: {reason}; runs are not tracked, everything else goes on")
        _off.append(reason)


def _client():
    """An MlflowClient, or None where MLflow is not installed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    try:
        from mlflow import MlflowClient
    except ImportError:
        _switch_off("not installed (pip install 'fsd[tracking]')")
        return None
    with _lock():  # the first one makes the database's tables
        client = MlflowClient(tracking_uri=uri())
        client.search_experiments(max_results=1)
    return client


def _lock():
    """Only one process at a time may create the SQLite database, or it is left broken."""
    if not uri().startswith("sqlite"):
        return nullcontext()
    file = open(".mlflow.lock", "w", encoding="utf-8")  # noqa: SIM115 - closed by the caller's with
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


class Tracker:
    """One run in MLflow. Every method is safe to call again with more of the same log."""

    def __init__(self, params: Params, run: Run, plan: dict[str, Any], key: str) -> None:
        self.client = self.run_id = self.monitor = None
        self.logged = -1  # last epoch that MLflow has; -1: not looked up yet
        if "SLURM_JOB_ID" in os.environ and not uri().startswith("http"):
            # SQLite over a network file system loses data: the report stage imports the log.
            _switch_off("no server is set (MLFLOW_TRACKING_URI) and this is a cluster's job")
        self._safely(self._open, params, run, plan, key)

    def _safely(self, function, *arguments) -> None:
        if _off:
            return
        try:
            function(*arguments)
        except Exception as error:  # a mirror must not stop what it mirrors
            text = (str(error).splitlines() or [type(error).__name__])[0]
            _switch_off(f"{uri()} does not answer ({text[:120]})")

    def _open(self, params: Params, run: Run, plan: dict[str, Any], key: str) -> None:
        self.client = _client()
        if self.client is None:
            return
        name = experiment_of(params, run)
        tags = {
            "key": key,
            "kind": "run",
            "dataset": run.dataset,
            "method": run.method,
            "seed": str(run.seed),
        }
        with _lock():  # of two runs that begin at once, MLflow would enter their data set twice
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            runs = self.client.search_runs([experiment], f"tags.`key` = '{key}'", max_results=1)
            if runs:
                self.run_id = runs[0].info.run_id
                return
            created = self.client.create_run(experiment, tags=tags, run_name=run.name)
            self.run_id = created.info.run_id
            self._describe(plan)

    def _describe(self, plan: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        values = [Param(name, str(value)[:500]) for name, value in flatten(plan).items()]
        self.client.log_batch(self.run_id, params=values)
        data, dataset = plan["data"], plan["run"]["dataset"]
        described = Dataset(
            name=dataset,
            digest=digest(data),
            source_type="local",
            source=json.dumps({"uri": data["source"] or f"generated, seed {data['seed']}"}),
        )
        context = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.run_id, [DatasetInput(described, context)])

    def log(self, log: list[dict[str, Any]]) -> None:
        """Bring the curves up to the log's last epoch."""
        self._safely(self._log, log)

    def _log(self, log: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        if self.run_id is None:
            return
        if self.logged < 0:
            history = self.client.get_metric_history(self.run_id, "loss")
            self.logged = max((point.step for point in history), default=0)
        now = int(time.time() * 1000)
        points = [
            Metric(name, value, now, line["epoch"])
            for line in log
            if line["epoch"] > self.logged
            for name, value in flatten(line).items()
            if name != "epoch"
        ]
        for start in range(0, len(points), 500):
            self.client.log_batch(self.run_id, metrics=points[start : start + 500])
        self.logged = max([self.logged, *(line["epoch"] for line in log)])

    def watch(self) -> None:
        """Log the processor's, memory's and GPU's load every ten seconds until `finish`."""
        self._safely(self._watch)

    def _watch(self) -> None:
        if self.run_id is None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri())
        self.monitor.start()

    def finish(
        self, results: dict[str, float] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        """Log final numbers (AP and the like) and tags, and close the run."""
        self._safely(self._finish, results or {}, tags or {})

    def _finish(self, results: dict[str, float], tags: dict[str, str]) -> None:
        if self.run_id is None:
            return
        from mlflow.entities import Metric

        if self.monitor is not None:
            self.monitor.finish()
        have = self.client.get_run(self.run_id).data.metrics
        now = int(time.time() * 1000)
        new = [Metric(k, v, now, 0) for k, v in results.items() if have.get(k) != v]
        self.client.log_batch(self.run_id, metrics=new)
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)
        self.client.set_terminated(self.run_id, "FINISHED")


def publish(
    experiment: str, references: dict[str, dict[str, float]], files: list[Path], note: str
) -> None:
    """Beside an experiment's runs: one run per number of the paper (kind `paper`), one that holds
    tables and page (kind `report`), and the table as the experiment's description."""
    if _off:
        return
    try:
        client = _client()
        found = client and client.get_experiment_by_name(experiment)
        if not found:
            return
        where = found.experiment_id
        client.set_experiment_tag(where, "mlflow.note.content", note)
        for name, values in references.items():
            run_id = _named_run(client, where, f"paper-{name}", name, "paper")
            have = client.get_run(run_id).data.metrics
            for metric, value in values.items():
                if have.get(metric) != value:
                    client.log_metric(run_id, metric, value)
            client.set_terminated(run_id, "FINISHED")
        run_id = _named_run(client, where, f"report-{experiment}", f"{experiment}/report", "report")
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:  # a mirror must not stop what it mirrors
        _switch_off(f"{uri()} does not answer ({type(error).__name__})")


def _named_run(client, experiment: str, key: str, name: str, kind: str) -> str:
    """The id of the run with that key, made where there is none."""
    found = client.search_runs([experiment], f"tags.`key` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"key": key, "kind": kind, "method": name.split("/")[-2], "dataset": name.split("/")[0]}
    return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by '/'; '@' and the like never occur in our names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            out[f"{prefix}{key}"] = value
    return out


def link(experiment: str) -> str | None:
    """The full address of an experiment's runs in a local MLflow UI; None where there is none."""
    if _off:
        return None
    try:
        client = _client()
        found = client and client.get_experiment_by_name(experiment)
        if found and f"{VIEW_TAG}.{VIEW}" not in found.tags:
            client.set_experiment_tag(found.experiment_id, f"{VIEW_TAG}.{VIEW}", _view())
    except Exception as error:
        _switch_off(f"{uri()} does not answer ({type(error).__name__})")
        return None
    if not found:
        return None
    base = uri() if uri().startswith("http") else "http://127.0.0.1:5000"
    place = f"{base}/#/experiments/{found.experiment_id}/runs"
    return f"{place}?workflowType=machine_learning&viewStateShareKey={VIEW}"


def _view() -> str:
    """A saved view of the runs table with AP in it; the bare UI shows no metric at all.

    MLflow does not document the format: where another version ignores it, its default view opens.
    """
    metrics = ("ap", "ap50", "delta_ap", "paper/ap", "paper/delta_ap")
    state = {
        "searchFilter": "",
        "orderByKey": "metrics.`ap`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            "attributes.`Created`",
            *(f"metrics.`{name}`" for name in metrics),
            "tags.`method`",
            "tags.`seed`",
            "tags.`verdict`",
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    view = {"name": "Results", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)


def ui_command() -> str | None:
    """How to start a local MLflow UI over the default database; None where a server is set."""
    if uri().startswith("http"):
        return None
    program = Path(sys.executable).with_name("mlflow")
    with suppress(ValueError):
        program = program.relative_to(Path.cwd())
    # One worker and no job runner: a quarter of the memory and half the start-up time.
    start = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {program} ui --workers 1"
    return f"{start} --backend-store-uri {uri()}"
