"""MLflow as a mirror: it shows what the run folders hold, and nothing is ever read back from it.

Logging is idempotent: a run is found again by the key of its store, and its curves continue after
the last step logged. So live logging, the repair of a killed run and the import of a cluster's runs
are one function. Whatever goes wrong here is said once, and training goes on.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fsd.console import console
from fsd.experiment.params import Params
from fsd.experiment.runs import Run, students, teacher_run
from fsd.files import digest
from fsd.tracking import view

DEFAULT_URI = "sqlite:///mlflow.db"
LOCK = ".mlflow.lock"
LOCK_S = 60.0  # at most so long for another process that makes or fills the database
_off: list[str] = []  # why this process does not track, once that is so


def uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def experiment_of(params: Params, run: Run) -> str:
    """The experiment a run is shown under: the active one if it holds it, else the first that does."""
    for chosen in (params.active, *params.experiments.values()):
        if run in students(chosen) or run in map(teacher_run, chosen.datasets):
            return chosen.name
    return "other"


def shown_name(params: Params, experiment: str, run: Run) -> str:
    """method/seed, after the data set where the experiment has several."""
    chosen = params.experiments.get(experiment)
    alone = chosen is not None and len(chosen.datasets) == 1
    return f"{run.method}/{run.seed}" if alone else run.name


def safely(function: Callable, *arguments: Any) -> Any:
    """What the function returns; None where MLflow is off or, which is said once, does not answer."""
    if _off:
        return None
    try:
        return function(*arguments)
    except Exception as error:  # a mirror must not stop what it mirrors
        text = (str(error).splitlines() or [type(error).__name__])[0]
        _switch_off(f"{uri()} does not answer ({text[:120]})")


def _switch_off(reason: str) -> None:
    if not _off:
        console.print(f"MLflow: {reason}; runs are not tracked, everything else goes on")
        _off.append(reason)


def client():
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


@contextmanager
def _lock() -> Iterator[None]:
    """Only one process at a time may create the SQLite database, or it is left broken.

    Raises TimeoutError where another holds it for more than LOCK_S seconds.
    """
    if not uri().startswith("sqlite"):
        yield
        return
    try:
        held = FileLock(LOCK, timeout=LOCK_S, fallback_to_soft=False).acquire()
    except Timeout:
        raise TimeoutError(f"another process has held {LOCK} for {LOCK_S:g} s") from None
    with held:
        yield


class Tracker:
    """One run in MLflow. Every method is safe to call again with more of the same log."""

    def __init__(
        self,
        params: Params,
        run: Run,
        plan: dict[str, Any],
        key: str,
        experiment: str | None = None,
        started: datetime | None = None,
    ) -> None:
        """Of a run that is imported: the experiment to show it under, and when it started.

        Without them it is the experiment that holds the run, and now.
        """
        self.client = self.run_id = self.monitor = None
        self.logged = -1  # last epoch that MLflow has; -1: not looked up yet
        if "SLURM_JOB_ID" in os.environ and not uri().startswith("http"):
            # SQLite over a network file system loses data: the report stage imports the log.
            _switch_off("no server is set (MLFLOW_TRACKING_URI) and this is a cluster's job")
        name = experiment or experiment_of(params, run)
        safely(self._open, name, shown_name(params, name, run), run, plan, key, started)

    def _open(
        self,
        name: str,
        shown: str,
        run: Run,
        plan: dict[str, Any],
        key: str,
        started: datetime | None,
    ) -> None:
        self.client = client()
        if self.client is None:
            return
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
            begun = _milliseconds(started)
            created = self.client.create_run(experiment, begun, tags, run_name=shown)
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
        safely(self._log, log)

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
        safely(self._watch)

    def _watch(self) -> None:
        if self.run_id is None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri())
        self.monitor.start()

    def finish(
        self,
        results: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
        ended: datetime | None = None,
    ) -> None:
        """Log final numbers (AP and the like) and tags, and close the run; ended: None for now."""
        safely(self._finish, results or {}, tags or {}, ended)

    def _finish(
        self, results: dict[str, float], tags: dict[str, str], ended: datetime | None
    ) -> None:
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
        self.client.set_terminated(self.run_id, "FINISHED", _milliseconds(ended))


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by '/'; '@' and the like never occur in our names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            out[f"{prefix}{key}"] = value
    return out


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Names of any kind to such as MLflow takes, distinct ones for distinct ones.

    It takes letters and digits of ASCII, and _ - . : / and spaces.
    """
    out: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).strip() or "_"
        while plain in out.values():
            plain += "_"
        out[name] = plain
    return out


def link(experiment: str) -> str | None:
    """The full address of an experiment's runs in a local MLflow UI; None where there is none."""
    found = safely(_viewed, experiment)
    if not found:
        return None
    base = uri() if uri().startswith("http") else "http://127.0.0.1:5000"
    place = f"{base}/#/experiments/{found}/runs"
    return f"{place}?workflowType=machine_learning&viewStateShareKey={view.NAME}"


def _viewed(experiment: str) -> str | None:
    """The experiment's id, after its view was written; None where MLflow or the experiment is not."""
    mlflow = client()
    found = mlflow and mlflow.get_experiment_by_name(experiment)
    if not found:
        return None
    if found.tags.get(view.VERSION_TAG) != view.VERSION:
        state = view.tag(int(time.time() * 1000))
        mlflow.set_experiment_tag(found.experiment_id, view.TAG, state)
        mlflow.set_experiment_tag(found.experiment_id, view.VERSION_TAG, view.VERSION)
    return found.experiment_id


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
