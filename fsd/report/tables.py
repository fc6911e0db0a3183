"""The numbers of the tables: per data set and method, over its seeds, against baseline and paper."""

import math
from typing import Any

import pandas as pd

from fsd.experiment.params import TEACHER, Params
from fsd.experiment.schema import Experiment
from fsd.report.collect import METRICS, Finished, frame
from fsd.report.stats import Difference, agreement, dunnett, holm, paired, seeds_needed
from fsd.report.verdict import judge

BASELINE = "baseline"
RULES = {"last": "last epoch", "best_val": "best on val", "best_test": "best on test (optimistic)"}
Paper = dict[tuple[str, str, str], dict[str, Any]]


def main_table(
    finished: list[Finished], chosen: Experiment, params: Params, paper: Paper
) -> pd.DataFrame:
    """One line per data set and method, teacher first, also where no run is finished (n = 0).

    Columns (metrics are fractions; NaN where there is nothing to say):
        dataset, method, n and planned (runs), rule (of the checkpoint, as the runs recorded it)
        <metric>_mean, <metric>_std (n - 1 divisor), for each of METRICS
        delta_<metric>, _low, _high: to the baseline over shared seeds, with its interval
        delta_n, delta_ap_std, p, p_holm (over the methods of the data set), p_better,
        seeds_needed (to tell the difference in AP from 0): see stats.py
        p_dunnett: of the difference in AP, without pairs; seeds_agree: of the data set's students
        reference_ap, _low, _high, reference_p: to the experiment's `reference`, if it names one
        paper_metric, paper, paper_delta, verdict, verdict_text: see verdict.py
    """
    rows = frame(finished)
    lines = []
    for dataset in chosen.datasets:
        values = {
            method: rows[(rows.dataset == dataset) & (rows.method == method)].set_index("seed")
            for method in (TEACHER, BASELINE, *chosen.methods)
        }
        block = [
            {
                "dataset": dataset,
                "method": method,
                "n": len(values[method]),
                "planned": 1 if method == TEACHER else len(chosen.seeds),
                "rule": _rule(finished, dataset, method),
            }
            | _spread(values[method])
            | _against(method, values, chosen, params)
            | _beside_the_paper(method, values, params, params.datasets[dataset].paper, paper)
            for method in (TEACHER, *chosen.methods)
        ]
        adjusted = holm([line["p"] for line in block])
        lines += [
            line | {"p_holm": p} | unpaired
            for line, p, unpaired in zip(block, adjusted, _unpaired(block, values), strict=True)
        ]
    return pd.DataFrame(lines)


def _unpaired(
    block: list[dict[str, Any]], values: dict[str, pd.DataFrame]
) -> list[dict[str, float]]:
    """What is known of each line's AP where shared seeds are not taken as pairs."""
    own = {method: frame.ap.dropna() for method, frame in values.items() if method != TEACHER}
    students = {method: ap for method, ap in own.items() if len(ap)}
    agree = agreement([ap.to_dict() for ap in students.values()])
    taught = [method for method in students if method != BASELINE]
    p_values = dict(
        zip(taught, dunnett([own[name] for name in taught], own[BASELINE]), strict=True)
    )
    return [
        {
            "p_dunnett": p_values.get(line["method"], math.nan),
            "seeds_agree": math.nan if line["method"] == TEACHER else agree,
        }
        for line in block
    ]


def rule_of(one: Finished) -> str:
    """How the run chose its epoch, in words."""
    select = one.made["plan"]["network"]["train"]["select"]
    return RULES.get(select, select)  # a rule that an older version had


def _rule(finished: list[Finished], dataset: str, method: str) -> str:
    rules = {
        rule_of(one) for one in finished if (one.run.dataset, one.run.method) == (dataset, method)
    }
    return " / ".join(sorted(rules)) or "–"


def _spread(own: pd.DataFrame) -> dict[str, float]:
    out = {}
    for metric in METRICS:
        out[f"{metric}_mean"] = own[metric].mean() if len(own) else math.nan
        out[f"{metric}_std"] = own[metric].std() if len(own) > 1 else math.nan
    return out


def _difference(
    method: str, other: str, metric: str, values: dict[str, pd.DataFrame], params: Params
) -> Difference:
    """Paired over the seeds where both have the metric; empty for the teacher and for itself."""
    if method in (TEACHER, other):
        return paired({}, {}, params.verdict.confidence)
    sides = (values[name][metric].dropna().to_dict() for name in (method, other))
    return paired(*sides, params.verdict.confidence)


def _against(
    method: str, values: dict[str, pd.DataFrame], chosen: Experiment, params: Params
) -> dict[str, Any]:
    """Differences to the baseline in every metric, and to the experiment's reference in AP."""
    out: dict[str, Any] = {}
    for metric in METRICS:
        delta = _difference(method, BASELINE, metric, values, params)
        out |= {
            f"delta_{metric}": delta.mean,
            f"delta_{metric}_low": delta.low,
            f"delta_{metric}_high": delta.high,
        }
    ap = _difference(method, BASELINE, "ap", values, params)
    needed = seeds_needed(ap.mean, ap.sd, params.verdict.confidence)
    out |= {"delta_n": ap.n, "delta_ap_std": ap.sd, "p": ap.p, "p_better": ap.p_better}
    out["seeds_needed"] = math.nan if needed is None else needed
    if chosen.reference:
        full = _difference(method, chosen.reference, "ap", values, params)
        out |= {
            "reference_ap": full.mean,
            "reference_ap_low": full.low,
            "reference_ap_high": full.high,
            "reference_p": full.p,
        }
    return out


def _beside_the_paper(
    method: str, values: dict[str, pd.DataFrame], params: Params, name: str | None, paper: Paper
) -> dict[str, Any]:
    """The paper's value and difference of this method in the metric it uses, and the verdict."""
    metric = next(
        (m for m in METRICS if {(name, method, m), (name, method, f"delta_{m}")} & paper.keys()), ""
    )
    value, delta = (
        paper.get((name, method, key), {}).get("value", math.nan)
        for key in (metric, f"delta_{metric}")
    )
    ours = _difference(method, BASELINE, metric or "ap", values, params)
    verdict = judge(ours, delta, params.verdict.confidence, params.verdict.margin)
    return {
        "paper_metric": metric,
        "paper": value,
        "paper_delta": delta,
        "verdict": verdict.kind or "",
        "verdict_text": verdict.text,
    }
