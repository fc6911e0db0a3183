"""Paired statistics and verdicts: by hand, by simulation, and by what must not matter."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fsd.report.stats import (
    MOST_SEEDS,
    Difference,
    agreement,
    dunnett,
    holm,
    paired,
    power,
    seeds_needed,
)
from fsd.report.verdict import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, judge

untimed = settings(deadline=None, max_examples=60)
fraction = st.floats(0, 1).map(lambda value: round(value, 6))
pairs = st.lists(st.tuples(fraction, fraction), min_size=2, max_size=8)


def runs_of(values) -> dict[int, float]:
    return dict(enumerate(values))


def test_two_differences_by_hand():
    """3 and 5 points: mean 4, SD sqrt 2, error 1, t = 4 with one degree of freedom."""
    out = paired({0: 0.53, 1: 0.59, 7: 0.9}, {0: 0.50, 1: 0.54, 2: 0.1}, 0.95)
    assert out.n == 2
    assert out.mean == pytest.approx(0.04)
    assert out.sd == pytest.approx(0.01 * math.sqrt(2))
    # Student's t with one degree of freedom is Cauchy's: quantiles and tails by arctangent.
    half = 0.01 * math.tan(math.pi * 0.475)
    assert (out.low, out.high) == (pytest.approx(0.04 - half), pytest.approx(0.04 + half))
    tail = 0.5 - math.atan(4) / math.pi
    assert out.p == pytest.approx(2 * tail)
    assert out.p_better == pytest.approx(1 - tail)


@untimed
@given(pairs)
def test_equals_scipys_paired_test(values):
    ours, theirs = zip(*values, strict=True)
    out = paired(runs_of(ours), runs_of(theirs), 0.9)
    if np.ptp(np.round(np.subtract(ours, theirs), 9)) == 0:
        return  # scipy warns and gives NaN there; the case has its own test
    expected = scipy_stats.ttest_rel(ours, theirs)
    assert out.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    interval = expected.confidence_interval(0.9)
    assert (out.low, out.high) == (
        pytest.approx(interval.low, abs=1e-9),
        pytest.approx(interval.high, abs=1e-9),
    )
    one_sided = scipy_stats.ttest_rel(ours, theirs, alternative="less")
    assert out.p_better == pytest.approx(one_sided.pvalue, rel=1e-6, abs=1e-12)


@untimed
@given(pairs, st.randoms(), st.floats(-1, 1).map(lambda value: round(value, 6)))
def test_neither_order_of_seeds_nor_a_common_constant_matters(values, random, constant):
    seeds = list(range(len(values)))
    random.shuffle(seeds)
    plain = paired(runs_of(a for a, _ in values), runs_of(b for _, b in values), 0.95)
    moved = paired(
        {seed: values[seed][0] + constant for seed in seeds},
        {seed: values[seed][1] + constant for seed in reversed(seeds)},
        0.95,
    )
    assert moved == pytest.approx(plain, rel=1e-6, abs=1e-9)


@untimed
@given(pairs)
def test_swapping_the_sides_mirrors_everything(values):
    a, b = runs_of(a for a, _ in values), runs_of(b for _, b in values)
    one, other = paired(a, b, 0.95), paired(b, a, 0.95)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)
    assert one.p_better == pytest.approx(1 - other.p_better)


def test_too_few_seeds_and_no_spread_do_not_crash():
    nothing = paired({0: 0.5}, {1: 0.5}, 0.95)
    assert nothing.n == 0 and all(map(math.isnan, nothing[1:]))
    single = paired({0: 0.5}, {0: 0.25}, 0.95)
    assert single[:2] == (1, 0.25) and all(map(math.isnan, single[2:]))
    control = paired(runs_of([0.1, 0.2, 0.3]), runs_of([0.1, 0.2, 0.3]), 0.95)
    assert control == Difference(3, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5)
    # 0.53 - 0.50 and 0.56 - 0.53 differ in the last bit
    same = paired(runs_of([0.53, 0.56]), runs_of([0.50, 0.53]), 0.95)
    assert (same.sd, same.p, same.p_better) == (0, 0, 1) and same.low == same.high == same.mean


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (5, 0.95), (5, 0.8)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, confidence):
    """2,000 experiments with a known mean difference; seeds share much larger noise."""
    rng = np.random.default_rng(n)
    times, truth, covered = 2000, 0.016, 0
    for _ in range(times):
        shared = rng.normal(0.5, 0.1, n)
        ours = shared + truth + rng.normal(0, 0.01, n)
        out = paired(runs_of(ours), runs_of(shared), confidence)
        covered += out.low <= truth <= out.high
    low, high = scipy_stats.binom.interval(0.9999, times, confidence)
    assert low <= covered <= high


def test_under_no_difference_p_values_are_uniform():
    rng = np.random.default_rng(0)
    found = [
        paired(runs_of(rng.normal(size=4)), runs_of(rng.normal(size=4)), 0.95).p
        for _ in range(1500)
    ]
    assert scipy_stats.kstest(found, "uniform").pvalue > 1e-4


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04; the last may not fall below .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.6]) == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert holm([]) == []


@untimed
@given(st.lists(fraction, min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    out = holm(values)
    assert all(p <= a <= min(1, len(values) * p) + 1e-12 for p, a in zip(values, out, strict=True))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(out)[order]) >= 0)


@pytest.mark.parametrize(
    ("effect", "confidence", "n"),
    [(0.2, 0.95, 199), (0.5, 0.95, 34), (0.8, 0.95, 15), (1, 0.95, 10)],
)
def test_seeds_needed_equal_the_textbooks(effect, confidence, n):
    """Paired t-test, two-sided, power .8: the usual tables (Cohen; G*Power)."""
    assert seeds_needed(effect * 0.01, 0.01, confidence) == n
    assert seeds_needed(-effect * 0.01, 0.01, confidence) == n


def test_power_is_what_a_simulation_finds():
    rng = np.random.default_rng(1)
    values = rng.normal(0.8, 1.0, (20000, 6))
    found = scipy_stats.ttest_1samp(values, 0, axis=1).pvalue < 0.1
    assert power(6, 0.8, 0.9) == pytest.approx(found.mean(), abs=0.015)


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.0, 0.01, 0.95) is None
    assert seeds_needed(math.nan, 0.01, 0.95) is None
    assert seeds_needed(0.01, math.nan, 0.95) is None
    assert seeds_needed(0.01, 0.0, 0.95) == 2
    assert seeds_needed(1e6, 1e-6, 0.95) == 2
    assert seeds_needed(0.0001, 0.01, 0.95) is None
    assert seeds_needed(0.001, 0.01, 0.95) == pytest.approx(787, abs=2) and MOST_SEEDS >= 787


def interval(low: float, high: float, n: int = 5) -> Difference:
    """A difference with that interval, mean in its middle, SD as 5 seeds would have it."""
    sd = (high - low) / 2 / scipy_stats.t.ppf(0.975, n - 1) * math.sqrt(n)
    return Difference(n, (low + high) / 2, sd, low, high, 0.5, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "paper", "kind"),
    [
        (0.010, 0.020, 0.016, REPRODUCED),  # excludes 0, includes the paper's
        (0.020, 0.030, 0.016, REPRODUCED),  # exceeds it
        (0.001, 0.016, 0.016, REPRODUCED),  # just touches it
        (0.005, 0.015, 0.016, NOT_REPRODUCED),  # a gain, but a smaller one
        (-0.030, -0.010, 0.016, NOT_REPRODUCED),  # harm
        (-0.004, 0.004, 0.016, NOT_REPRODUCED),  # within the margin
        (-0.004, 0.010, 0.016, NOT_REPRODUCED),  # below the paper's though wider than the margin
        (-0.010, 0.030, 0.016, INCONCLUSIVE),  # includes both
        (0.000, 0.030, 0.016, INCONCLUSIVE),  # touching 0 does not exclude it
        (-0.004, 0.004, 0.003, NOT_REPRODUCED),  # a claim within the margin, and no difference
        (0.001, 0.004, 0.003, REPRODUCED),  # a small claim that holds
        (-0.004, 0.008, 0.003, INCONCLUSIVE),
        (0.010, 0.020, -0.010, None),  # no gain is claimed
        (0.010, 0.020, math.nan, None),  # no value
    ],
)
def test_verdicts(low, high, paper, kind):
    verdict = judge(interval(low, high), paper, 0.95, 0.005)
    assert verdict.kind == kind
    assert verdict.text.startswith(kind or "–")
    if kind == INCONCLUSIVE:
        assert f"about {verdict.needed} seeds" in verdict.text and verdict.needed > 5
    else:
        assert verdict.needed is None


def test_an_inconclusive_verdict_counts_the_nearer_of_its_two_ends():
    """Mean 0.004, SD 0.01: 0 is 0.4 SD away, the paper's 0.016 is 1.2 SD away."""
    ours = paired(runs_of([0.014, -0.006, 0.004]), runs_of([0, 0, 0]), 0.95)
    assert (ours.mean, ours.sd) == (pytest.approx(0.004), pytest.approx(0.01))
    verdict = judge(ours, 0.016, 0.95, 0.005)
    assert verdict.needed == seeds_needed(0.012, 0.01, 0.95) < seeds_needed(0.004, 0.01, 0.95)


def test_one_seed_is_inconclusive_and_none_is_no_verdict():
    single = paired({0: 0.5}, {0: 0.4}, 0.95)
    assert judge(single, 0.016, 0.95, 0.005).kind == INCONCLUSIVE
    assert judge(paired({}, {}, 0.95), 0.016, 0.95, 0.005).kind is None


def test_a_control_equal_to_the_baseline_is_not_reproduced():
    control = paired(runs_of([0.1, 0.2]), runs_of([0.1, 0.2]), 0.95)
    assert judge(control, 0.016, 0.95, 0.005).kind == NOT_REPRODUCED


def test_dunnett_on_the_example_of_his_paper():
    """Blood counts of animals under two drugs and none (Dunnett 1955, table 1): the second differs."""
    none = [7.40, 8.50, 7.20, 8.24, 9.84, 8.32]
    first, second = [9.76, 8.80, 7.68, 9.36], [12.80, 9.68, 12.16, 9.20, 10.55]
    p = dunnett([first, second], none)
    assert 0.5 < p[0] < 0.7
    assert 0.001 < p[1] < 0.01
    assert dunnett([first, [], second], none) == [p[0], pytest.approx(math.nan, nan_ok=True), p[1]]


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, where one side is constant
@untimed
@given(pairs)
def test_dunnett_of_one_method_is_the_unpaired_t_test(values):
    ours, theirs = zip(*values, strict=True)
    out = dunnett([ours], theirs)[0]
    if max(np.ptp(np.round(side, 9)) for side in (ours, theirs)) == 0:
        return  # no spread: the next test
    assert out == pytest.approx(scipy_stats.ttest_ind(ours, theirs).pvalue, abs=1e-3)


def test_what_dunnett_cannot_say():
    for methods, reference in (
        ([[0.5, 0.5]], [0.4, 0.4]),  # no spread
        ([[0.5]], [0.4]),  # one run each
        ([[0.5, 0.6]], []),  # no reference
    ):
        assert np.isnan(dunnett(methods, reference)).all()
    assert dunnett([], [0.4, 0.5]) == []


def test_seeds_that_shift_all_methods_alike_agree_wholly_and_others_not_at_all():
    shift = {seed: 0.01 * seed**2 for seed in range(5)}
    alike = [{seed: base + value for seed, value in shift.items()} for base in (0.1, 0.3, 0.35)]
    assert agreement(alike) == pytest.approx(1)
    never = dict.fromkeys(shift, 0.2)
    assert agreement([*alike, never]) == pytest.approx(1)
    assert agreement([*alike, {0: 0.9, 1: 0.1}]) == pytest.approx(1)  # one that has too few seeds
    draws = np.random.default_rng(0).normal(size=(200, 10, 5))
    unrelated = [agreement([runs_of(own) for own in trial]) for trial in draws]
    assert abs(np.mean(unrelated)) < 0.02


def test_too_few_shared_seeds_do_not_agree():
    assert math.isnan(agreement([{0: 0.1, 1: 0.2, 2: 0.4}, {1: 0.1, 2: 0.2, 3: 0.3}]))
    assert math.isnan(agreement([{0: 0.1, 1: 0.2, 2: 0.4}]))
    assert math.isnan(agreement([{0: 0.1, 1: 0.2, 2: 0.4}] * 2))  # the same runs
    assert math.isnan(agreement([]))
