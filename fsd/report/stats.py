"""Paired statistics: what a few seeds can and cannot say about a difference in AP.

All methods of a seed share initial weights, order and augmentation, so the unit is the difference
of two runs of one seed; the seeds are taken as independent draws, the differences as normal.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats has these under other names, and takes long to load

POWER = 0.8  # of the number of seeds that would decide
MOST_SEEDS = 1000  # beyond it the answer is None: no experiment of this kind has as many
NOISE = 12  # digits; what two orders of summation may differ in is no difference


class Difference(NamedTuple):
    """Method minus reference over n shared seeds, in the metric's unit; NaN where n is too small."""

    n: int
    mean: float
    sd: float  # n - 1 divisor; from n = 2 on, like all that follows
    low: float  # confidence interval of the mean (Student's t)
    high: float
    p: float  # two-sided paired t-test of "no difference"
    p_better: float  # P(true mean > 0): t distribution around the mean, flat prior


def paired(
    method: Mapping[int, float], reference: Mapping[int, float], confidence: float
) -> Difference:
    """Compare two methods over the seeds (keys) that both have.

    Equal results for every seed (a control of weight 0) give an interval of no width, p = 1 and
    p_better = 0.5; the same difference other than 0 for every seed gives p = 0, as the formula does.
    """
    shared = sorted(method.keys() & reference.keys())
    values = np.round([method[seed] - reference[seed] for seed in shared], NOISE)
    n = len(values)
    if n < 2:
        return Difference(n, float(values[0]) if n else math.nan, *[math.nan] * 5)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if np.ptp(values) == 0:
        p, better = (1.0, 0.5) if mean == 0 else (0.0, float(mean > 0))
        return Difference(n, mean, 0.0, mean, mean, p, better)
    error = sd / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    t = mean / error
    p = float(2 * special.stdtr(n - 1, -abs(t)))
    return Difference(n, mean, sd, mean - half, mean + half, p, float(special.stdtr(n - 1, t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over one family of tests; a NaN is no test and stays NaN.

    The k-th smallest of m becomes the largest of (m - j + 1) * p_(j), j <= k, at most 1 (S. Holm, A
    simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979).
    """
    p = np.asarray(p_values, float)
    out = np.full(len(p), np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out.tolist()


def dunnett(methods: Sequence[Sequence[float]], reference: Sequence[float]) -> list[float]:
    """p of each method against the reference, its runs not taken as pairs; NaN where it has none.

    One spread is pooled over all of them, and p is adjusted for the number of methods (C. Dunnett, A
    multiple comparison procedure for comparing several treatments with a control, JASA 50, 1955).
    Where shared seeds pair nothing it tells more than the paired test: its SD is known better.
    """
    from scipy import stats

    tested = [np.round(np.asarray(own, float), NOISE) for own in methods if len(own)]
    runs = [np.round(np.asarray(reference, float), NOISE), *tested]
    freedom = sum(map(len, runs)) - len(runs)
    if not tested or not len(reference) or freedom < 1 or all(np.ptp(own) == 0 for own in runs):
        return [math.nan] * len(methods)
    with warnings.catch_warnings():  # of a method whose runs are all equal, where others are not
        warnings.simplefilter("ignore", RuntimeWarning)
        found = iter(stats.dunnett(*tested, control=runs[0], rng=np.random.default_rng(0)).pvalue)
    return [float(next(found)) if len(own) else math.nan for own in methods]


def agreement(methods: Sequence[Mapping[int, float]]) -> float:
    """Mean correlation, over pairs of methods, of runs (by seed) that share a seed.

    1: what a seed adds it adds to all, so that differences on one seed have no spread; 0: pairing by
    seed buys nothing. A pair counts that shares three seeds, over which both vary and are not the
    same runs (as a control of weight 0 and the baseline are). NaN without any.
    """
    found = []
    for pair in itertools.combinations(methods, 2):
        shared = sorted(pair[0].keys() & pair[1].keys())
        one, other = (np.round([own[seed] for seed in shared], NOISE) for own in pair)
        if len(shared) >= 3 and np.ptp(one) and np.ptp(other) and not np.array_equal(one, other):
            found.append(np.corrcoef(one, other)[0, 1])
    return float(np.mean(found)) if found else math.nan


def power(n: int, effect: float, confidence: float) -> float:
    """Chance that the interval of n paired differences excludes 0, were their mean effect * SD.

    Normal power averaged over the sample's SD at 2,000 quantiles (to 1e-3): scipy's noncentral t
    does not converge for large effects.
    """
    middle = (np.arange(2000) + 0.5) / 2000
    spread = np.sqrt(special.chdtri(n - 1, 1 - middle) / (n - 1))
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * spread
    shift = abs(effect) * math.sqrt(n)
    return float((special.ndtr(shift - half) + special.ndtr(-shift - half)).mean())


def seeds_needed(mean: float, sd: float, confidence: float) -> int | None:
    """Fewest seeds whose interval excludes 0 with probability POWER at this mean and SD.

    None where it takes more than MOST_SEEDS or mean or SD is unknown (NaN).
    """
    if math.isnan(mean) or math.isnan(sd) or mean == 0:
        return None
    effect = abs(mean) / sd if sd else math.inf
    if effect > 50:  # certain with two seeds, and no use in multiplying infinities
        return 2
    if power(MOST_SEEDS, effect, confidence) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # power grows with n: too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, confidence) >= POWER else (middle, high)
    return high
