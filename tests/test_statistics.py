"""Intervals, tests and agreement against arithmetic, scipy and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg.statistics import (
    FEWEST,
    FEWEST_PAIRED,
    agreement,
    holm,
    mean_interval,
    median_interval,
    paired,
    rate_interval,
)

scores = st.lists(st.floats(0, 1), min_size=FEWEST, max_size=40)


@settings(max_examples=40)
@given(scores)
def test_intervals_hold_their_estimate_and_stay_in_range(values):
    mean, median = mean_interval(values, low=0, high=1), median_interval(values)
    assert 0 <= mean.low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= mean.high <= 1
    assert min(values) <= median.low <= np.median(values) + 1e-12
    assert np.median(values) - 1e-12 <= median.high <= max(values)


def test_equal_scores_give_equal_intervals():
    values = np.random.default_rng(0).random(25).tolist()
    assert mean_interval(values, low=0, high=1) == mean_interval(list(values), low=0, high=1)
    assert median_interval(values) == median_interval(list(values))


def test_too_few_patients_give_no_interval():
    assert mean_interval([0.5] * (FEWEST - 1)) is None
    assert median_interval([0.1, 0.2, 0.3]) is None
    # Twelve scans of four patients are four patients.
    assert mean_interval(list(np.linspace(0, 1, 12)), list("aaabbbcccddd")) is None


def test_equal_values_without_bounds_give_a_point():
    assert mean_interval([0.7] * 10).low == pytest.approx(0.7)
    assert mean_interval([0.7] * 10).high == pytest.approx(0.7)


def test_equal_scores_leave_room_for_what_the_sample_did_not_hold():
    # The added patient's weight is Beta(1, 10): above w with (1 - w)^10 = .025, so w = .3085 at the tail.
    weight = 1 - 0.025 ** (1 / 10)
    ends = mean_interval([0.7] * 10, low=0, high=1)
    assert ends.low == pytest.approx(0.7 * (1 - weight), abs=0.01)
    assert ends.high == pytest.approx(0.7 + 0.3 * weight, abs=0.01)


@pytest.mark.parametrize(("hits", "tries"), [(0, 8), (3, 11), (20, 30), (30, 30)])
def test_scores_of_0_and_1_give_the_exact_interval_of_a_rate(hits, tries):
    mine, exact = mean_interval([1.0] * hits + [0.0] * (tries - hits), low=0, high=1), rate_interval(hits, tries)
    assert (mine.low, mine.high) == (pytest.approx(exact.low, abs=0.01), pytest.approx(exact.high, abs=0.01))


def test_bounds_other_than_0_and_1_only_stretch_the_interval():
    values = np.random.default_rng(3).random(12)
    unit, stretched = mean_interval(values, low=0, high=1), mean_interval(values * 2 - 1, low=-1, high=1)
    assert (stretched.low, stretched.high) == pytest.approx((unit.low * 2 - 1, unit.high * 2 - 1))


def test_patients_are_drawn_not_cases():
    values = list(np.random.default_rng(1).normal(size=12))
    alone = mean_interval(values)
    # Each value ten times: ten times the cases, but no more patients, so no narrower an interval.
    repeated = mean_interval([v for v in values for _ in range(10)], [str(n) for n in range(12) for _ in range(10)])
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    as_if_apart = mean_interval([v for v in values for _ in range(10)])
    assert as_if_apart.high - as_if_apart.low < 0.6 * (alone.high - alone.low)


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(4).lognormal(size=40)
    mine = mean_interval(values.tolist())
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert mine.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_interval_is_near_students_t_for_a_large_normal_sample():
    values = np.random.default_rng(5).normal(0.5, 0.15, 600).clip(0, 1)
    mine = mean_interval(values.tolist(), low=0, high=1)
    low, high = stats.t.interval(0.95, 599, values.mean(), values.std(ddof=1) / 600**0.5)
    assert (mine.low, mine.high) == (pytest.approx(low, abs=0.002), pytest.approx(high, abs=0.002))


@pytest.mark.parametrize("missed", [0.05, 0.15])
def test_coverage_of_skewed_zero_inflated_scores(missed):
    generator, held = np.random.default_rng(11), 0
    true = (1 - missed) * 8 / 10  # a share at 0, the others Beta(8, 2)
    for study in range(150):
        values = generator.beta(8, 2, 30)
        values[generator.random(30) < missed] = 0
        interval = mean_interval(values.tolist(), low=0, high=1, seed=study)
        held += interval.low <= true <= interval.high
    # 95 % of 150 is 142; 4 standard errors below is 132 (sqrt(150 x .95 x .05) = 2.7).
    assert held >= 132


def test_exact_permutation_by_hand():
    # Differences 1, 2, 3: sums of signed values are +-6, +-4, +-2, 0, 0; 2 of the 8 reach 6.
    result = paired([0, 0, 0], [1, 2, 3])
    assert result.p == pytest.approx(2 / 8)
    assert (result.difference, result.better, result.worse, result.cases) == (2, 3, 0, 3)
    assert result.effect == pytest.approx(2.0)  # mean 2, standard deviation 1


def test_permutation_agrees_with_scipy_and_with_counting():
    generator = np.random.default_rng(2)
    a, b = generator.random(9), generator.random(9) + 0.2
    d = b - a
    by_hand = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in product((-1, 1), repeat=9)])
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(y - x), permutation_type="samples", n_resamples=np.inf, rng=1
    )
    assert paired(a, b).p == pytest.approx(by_hand)
    assert paired(a, b).p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("groups", [6, 9, 12])
def test_the_interval_of_a_difference_ends_where_the_test_begins_to_reject(groups):
    d = np.random.default_rng(groups).normal(0.3, 1, groups)
    ends, step = paired(np.zeros(groups), d).interval, 1e-6
    inside, outside = (ends.low + step, ends.high - step), (ends.low - step, ends.high + step)
    assert all(paired(np.zeros(groups), d - shift).p > 0.05 for shift in inside)
    assert all(paired(np.zeros(groups), d - shift).p <= 0.05 for shift in outside)


def test_the_interval_of_a_difference_by_hand():
    # Of 63 subset means the smallest is that of the patient with the smallest difference: .025 x 64 = 1.6, the first.
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]
    ends = paired([0.0] * 6, values).interval
    assert (ends.low, ends.high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert paired([0.0] * 5, values[:5]).interval is None
    # By patient: twelve scans of six patients, weighted by their number.
    ends = paired([0.0] * 12, [v for v in values for _ in range(2)], [str(n) for n in range(6) for _ in range(2)])
    assert (ends.interval.low, ends.interval.high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert FEWEST_PAIRED == 6


def test_a_patient_with_many_scans_counts_once():
    # Twenty scans of one patient, all better, prove nothing: 2 of 2 sign changes are as far out.
    assert paired([0.5] * 20, [0.9] * 20, ["one"] * 20).p == 1.0


def test_no_difference_is_no_effect():
    result = paired([0.5, 0.6], [0.5, 0.6])
    assert (result.p, result.effect, result.difference) == (1.0, None, 0)


def test_level_of_the_drawn_permutation_test():
    generator = np.random.default_rng(8)
    p = [paired(np.zeros(20), generator.normal(size=20) ** 3, seed=n).p for n in range(120)]
    # 5 % of 120 is 6; 3 standard errors above is 13 (sqrt(120 x .05 x .95) = 2.4).
    assert np.sum(np.array(p) <= 0.05) <= 13


def test_holm_by_hand():
    # Sorted .01, .02, .04 times 3, 2, 1 = .03, .04, .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_agreement_by_hand():
    # Differences 1, 3, 2: mean 2, standard deviation 1.
    result = agreement([10, 20, 30], [11, 23, 32])
    assert (result.bias, result.low, result.high) == (2, pytest.approx(0.04), pytest.approx(3.96))
    # Rows 10.5, 21.5, 31 (mean 21): 2 x variance 105.25 = 210.5. Columns 20 and 22: 3 x variance 2 = 6.
    # Residual: differences from bias 2 are -1, 1, 0; each adds 2 x (half)^2 = .5, .5, 0: 1 / 2 degrees = .5.
    # ICC(A,1) = (210.5 - .5) / (210.5 + .5 + 2/3 x (6 - .5)) = 210 / 214.6667
    assert result.icc == pytest.approx(210 / (211 + 11 / 3))
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([5, 5, 5], [5, 5, 5]).icc is None


def test_groups_must_fit():
    with pytest.raises(ValueError, match="3 values, 2 groups"):
        mean_interval([1, 2, 3], ["a", "b"])


def test_rate_interval_by_hand_and_with_scipy():
    # No hit in 30: (1 - p)^30 = .025 at p = 1 - .025^(1/30) = .1157.
    assert (rate_interval(0, 30).low, rate_interval(0, 30).high) == (0, pytest.approx(1 - 0.025 ** (1 / 30)))
    theirs = stats.binomtest(3, 11).proportion_ci(0.95, "exact")
    assert (rate_interval(3, 11).low, rate_interval(3, 11).high) == (
        pytest.approx(theirs.low),
        pytest.approx(theirs.high),
    )
    assert rate_interval(4, 4).high == 1
    assert rate_interval(0, 0) is None


def test_the_smallest_p_is_reached_by_equal_signs_and_told():
    result = paired([0] * 6, [1, 2, 3, 4, 5, 6])
    assert (result.exact, result.p, result.smallest_p) == (True, 2 / 64, 2 / 64)
    drawn = paired([0.0] * 40, np.arange(1, 41).tolist())
    assert not drawn.exact
    assert drawn.smallest_p == drawn.p == 1 / 20_001
