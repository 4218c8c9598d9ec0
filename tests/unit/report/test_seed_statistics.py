"""The statistics of a report, by hand and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saw.report.seed_statistics import (
    area_per_step,
    bootstrap_mean,
    bootstrap_median,
    equivalence,
    hypervolume,
    paired_tests,
    pareto_front,
    steps_to,
)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    chance = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(chance.normal(3.0, 1.0, size=20))
        hits += interval.low <= 3.0 <= interval.high
    assert 178 <= hits <= 199  # 95 % of 200 is 190, a small sample's interval is a little narrow


def test_few_or_equal_values_have_no_spread_to_speak_of():
    assert str(bootstrap_mean([0.5])) == "0.500 (n = 1)"
    assert str(bootstrap_mean([0.5, 0.5, math.nan])) == "0.500 [0.500, 0.500] (n = 2)"
    assert str(bootstrap_mean([0.1 + 0.2, 0.3])) == "0.300 [0.300, 0.300] (n = 2)"  # equal but for rounding
    assert math.isnan(paired_tests({"same": [0.1 + 0.2, 0.3]})["same"].p)
    assert str(bootstrap_mean([-1e-9])) == "0.000 (n = 1)"
    assert math.isnan(bootstrap_mean([]).mean)


def test_an_outlier_moves_no_median():
    calm, wild = (bootstrap_median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, last]) for last in (7.0, 700.0))
    assert (calm.mean, wild.mean) == (4.0, 4.0)
    assert 1.0 <= wild.low == calm.low <= 4.0 <= calm.high <= 7.0
    chance = np.random.default_rng(1)
    wide, narrow = (bootstrap_median(chance.normal(size=n)) for n in (10, 1000))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_paired_tests_use_holm():
    found = paired_tests({"better": [0.5, 0.6, 0.4, math.nan], "noise": [0.1, -0.2, 0.3]})
    assert found["better"].difference.n == 3
    assert found["better"].difference.mean == pytest.approx(0.5)
    assert found["better"].effect == pytest.approx(5.0)  # 0.5 / 0.1
    p = [stats.ttest_rel([1.5, 2.6, 3.4], [1, 2, 3]).pvalue, stats.ttest_rel([1.1, 1.8, 3.3], [1, 2, 3]).pvalue]
    assert [found[name].p for name in ("better", "noise")] == pytest.approx(p)
    assert found["better"].p_corrected == pytest.approx(2 * p[0])
    assert found["noise"].p_corrected == pytest.approx(max(2 * p[0], p[1]))


def test_a_pair_is_no_test():
    found = paired_tests({"other": [1.0]})["other"]
    assert math.isnan(found.p)
    assert math.isnan(found.p_corrected)
    assert found.difference.mean == 1.0


def test_equivalence_is_not_the_absence_of_a_difference():
    wide = np.array([1.0, -1.0] * 10)
    assert equivalence(0.01 * wide, margin=0.05)[1] < 0.001
    assert equivalence(wide, margin=0.05)[1] > 0.05  # no difference either, but too few seeds to say so
    assert equivalence(0.01 * wide + 0.1, margin=0.05)[1] > 0.95
    assert equivalence(np.zeros(20), margin=0.05)[1] == 0.0


def test_steps_to_a_threshold_by_hand():
    values = [0.0, 0.9, 0.0, 0.6, 0.9, 0.9]
    assert steps_to([1, 2, 3, 4, 5, 6], values, 0.5) == 4  # (0.9 + 0 + 0.6) / 3
    assert steps_to([1, 2, 3, 4, 5, 6], values, 0.55) == 6
    assert steps_to([1, 2, 3, 4, 5, 6], values, 0.85, window=1) == 2
    assert steps_to([1, 2, 3], [0.0, 0.1, 0.2], 0.5) == math.inf
    assert steps_to([1, 2, 3, 4], [math.nan, math.nan, math.nan, 1.0], 0.5) == 4


def test_area_under_a_curve_per_step_by_hand():
    """It is not the mean of the values: the first and the last count half, and gaps are bridged."""
    assert area_per_step([1, 2, 4], [0.0, 1.0, 1.0]) == pytest.approx(2.5 / 3)
    assert area_per_step([1, 2, 3], [0.0, 0.0, 1.0]) == pytest.approx(0.25)  # the mean is 1/3
    assert area_per_step([1, 2, 3], [0.5, math.nan, 0.5]) == 0.5
    assert area_per_step([7], [0.3]) == 0.3
    assert math.isnan(area_per_step([1, 2], [math.nan, math.nan]))


def test_pareto_front_and_hypervolume_by_hand():
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (1.0, 2.0), "d": (3.0, 1.0)}
    assert pareto_front(points) == ["a", "b", "d"]
    assert pareto_front({"a": (1.0, 1.0), "same": (1.0, 1.0), "less": (0.5, 1.0)}) == ["a", "same"]
    assert pareto_front({"x": (0.3, 1.0), "same but for rounding": (0.1 + 0.2, 1.0)}) == ["x", "same but for rounding"]
    assert pareto_front({"better": (0.3, 2.0), "ahead by rounding": (0.1 + 0.2, 1.0)}) == ["better"]
    assert pareto_front({"zero": (0.0, 1.0), "below": (0.0, -1.0)}) == ["zero"]
    assert hypervolume(list(points.values()), (0.0, 0.0)) == pytest.approx(3 + 2 + 1)
    assert hypervolume([(1.0, 2.0, 3.0)], (0.0, 0.0, 1.0)) == pytest.approx(4.0)
    assert hypervolume([(1.0, -1.0)], (0.0, 0.0)) == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=1, max_size=6), st.floats(0.1, 1))
def test_more_points_never_shrink_the_volume(points, value):
    before = hypervolume(points, (0.0, 0.0))
    after = hypervolume([*points, (value, value)], (0.0, 0.0))
    assert max(before, value * value) - 1e-12 <= after <= 1.0 + 1e-12


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_the_front_is_what_no_point_beats(points):
    """Kind: only one of several equal points is kept. Compared with the definition, in any order."""
    named = {str(place): point for place, point in enumerate(points)}
    beaten = {
        name
        for name, own in named.items()
        for other in named.values()
        if other != own and all(theirs >= mine for theirs, mine in zip(other, own, strict=True))
    }
    assert pareto_front(named) == [name for name in named if name not in beaten]
