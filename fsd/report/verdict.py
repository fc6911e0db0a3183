"""The rule, fixed before the runs, by which a gain claimed by the paper counts as reproduced or not."""

import math
from typing import NamedTuple

from fsd.report.stats import MOST_SEEDS, Difference, seeds_needed

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"


class Verdict(NamedTuple):
    """kind: one of the three words, or None where there is nothing to judge."""

    kind: str | None
    needed: int | None  # seeds that would decide, of an inconclusive one; None: unknown or too many
    text: str  # for the table


def judge(ours: Difference, paper: float, confidence: float, margin: float) -> Verdict:
    """Hold our difference to the baseline against the paper's (NaN: it reports none).

    Only a claimed gain (paper > 0) is judged. The first rule that fits decides:

    1. no interval yet (fewer than two seeds): inconclusive;
    2. the interval lies wholly below the paper's difference: not reproduced, even if it excludes 0;
    3. it lies wholly above 0, and so includes or exceeds the paper's difference: reproduced;
    4. it lies within -margin..+margin: not reproduced (reached only by a claim within the margin);
    5. inconclusive. The seeds needed are the fewest with which the interval would exclude 0 or the
       paper's difference, with probability `stats.POWER`, were mean and SD as seen so far.

    All values in the metric's unit. An interval that touches a bound does not lie beyond it.
    """
    if math.isnan(paper) or paper <= 0 or ours.n == 0:
        return Verdict(None, None, "–")
    if math.isnan(ours.low):
        return Verdict(INCONCLUSIVE, None, f"{INCONCLUSIVE} (one seed says nothing of the spread)")
    if ours.high < paper:
        return Verdict(NOT_REPRODUCED, None, NOT_REPRODUCED)
    if ours.low > 0:
        return Verdict(REPRODUCED, None, REPRODUCED)
    if -margin <= ours.low and ours.high <= margin:
        return Verdict(NOT_REPRODUCED, None, NOT_REPRODUCED)
    ways = [seeds_needed(ours.mean, ours.sd, confidence)]
    if ours.mean < paper:
        ways.append(seeds_needed(paper - ours.mean, ours.sd, confidence))
    needed = min((n for n in ways if n), default=None)
    return Verdict(INCONCLUSIVE, needed, f"{INCONCLUSIVE} ({_seeds(needed)})")


def _seeds(needed: int | None) -> str:
    return f"about {needed} seeds would decide" if needed else f"over {MOST_SEEDS} seeds needed"
