"""What MLflow's page of runs shows: which columns, in which order, how wide, and which charts.

MLflow keeps such a view in a tag of the experiment but does not document its form. Where another
version does not know it, the page's own default opens.
"""

import base64
import json
import zlib
from typing import Any

NAME = "results"
TAG = f"mlflow.sharedViewState.{NAME}"
VERSION_TAG, VERSION = "view", "2"  # raised with every change here: the view is then written anew
# Metrics and tags in MLflow's table -> their width in pixels, in the order shown: with the panel that
# MLflow opens beside it, a page of 1500 pixels holds all but the last.
COLUMNS = {
    "metrics.`ap`": 70,
    "metrics.`ap50`": 75,
    "metrics.`delta_ap`": 85,
    "metrics.`paper/delta_ap`": 115,
    "tags.`verdict`": 120,
    "metrics.`paper/ap`": 85,
}
# With those that MLflow always shows.
ALL = {"attributes.`Run Name`": 180, "runDateAndNestInfo": 140, **COLUMNS, "duration": 80}
BARS = ("ap", "delta_ap", "ap50")
LINES = ("loss", "kd_over_task")
SECTION = "results"


def state() -> dict[str, Any]:
    """The view as MLflow's page reads it."""
    return {
        "searchFilter": "",
        "orderByKey": "metrics.`ap`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(ALL),
        "columnWidths": ALL,
        "runsHiddenMode": "SHOW_ALL",  # in charts, where MLflow would draw the first ten alone
        "compareRunCharts": [
            *(_chart("BAR", metric) for metric in BARS),
            *(_chart("LINE", metric) for metric in LINES),
        ],
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "Results",
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "isAccordionReordered": True,  # or MLflow sorts this section among its own
    }


def _chart(kind: str, metric: str) -> dict[str, Any]:
    common = {
        "uuid": f"{SECTION}-{metric}",
        "type": kind,
        "metricSectionId": SECTION,
        "metricKey": metric,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return common
    return common | {
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "log",
        "lineSmoothness": 0,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def tag(now: int) -> str:
    """The tag's value; now: milliseconds since 1970."""
    packed = base64.b64encode(zlib.compress(json.dumps(state()).encode())).decode()
    view = {"name": "Results", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)
