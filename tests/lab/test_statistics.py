import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foveal.lab.statistics import Difference, judge, paired_difference

METHOD, BASELINE = [71.2, 69.8, 73.1, 70.4, 72.0], [68.1, 69.9, 70.2, 69.0, 70.8]
numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8)


def test_the_interval_is_that_of_the_paired_t_test():
    found = paired_difference(METHOD, BASELINE)
    reference = stats.ttest_rel(METHOD, BASELINE).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-12)
    difference = np.subtract(METHOD, BASELINE)
    scale = stats.sem(difference)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, difference.mean(), scale), rel=1e-12)
    assert (found.mean, found.sd, found.seeds) == pytest.approx((difference.mean(), difference.std(ddof=1), 5))


@given(pairs)
def test_the_verdict_is_that_of_the_t_test(rows):
    method, baseline = zip(*rows, strict=True)
    found = paired_difference(method, baseline)
    if found.sd < 1e-6:  # scipy has no p-value without spread
        return
    p = stats.ttest_rel(method, baseline).pvalue
    if abs(p - 0.05) > 1e-6:
        assert (judge(found) != "inconclusive") == (p < 0.05)


@given(pairs, numbers)
def test_symmetries(rows, shift):
    method, baseline = zip(*rows, strict=True)
    found, mirrored = paired_difference(method, baseline), paired_difference(baseline, method)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    moved = paired_difference([value + shift for value in method], [value + shift for value in baseline])
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high), abs=1e-6)
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
    assert judge(mirrored) == opposite[judge(found)]
    assert judge(mirrored, lower=True) == judge(found)


@pytest.mark.parametrize(
    ("low", "high", "by", "lower", "verdict"),
    [
        (0.1, 0.9, 0.0, False, "reproduced"),
        (-0.1, 0.9, 0.0, False, "inconclusive"),
        (-0.9, -0.1, 0.0, False, "not reproduced"),
        (-0.9, -0.1, 0.0, True, "reproduced"),
        (0.1, 0.9, 0.0, True, "not reproduced"),
        (0.1, 0.9, 0.5, False, "inconclusive"),
        (0.6, 0.9, 0.5, False, "reproduced"),
        (0.1, 0.4, 0.5, False, "not reproduced"),
        (-0.9, -0.6, 0.5, True, "reproduced"),
        (-0.4, -0.1, 0.5, True, "not reproduced"),
        (-0.4, 0.3, -0.5, False, "reproduced"),  # loses less than 0.5
        (-0.9, -0.6, -0.5, False, "not reproduced"),
        (0.0, 0.0, 0.0, False, "inconclusive"),
    ],
)
def test_verdicts(low, high, by, lower, verdict):
    assert judge(Difference((low + high) / 2, 1.0, low, high, 3), by, lower) == verdict


def test_differences_without_spread_are_judged_by_their_sign():
    assert judge(paired_difference([1, 2, 3], [0, 1, 2])) == "reproduced"
    assert judge(paired_difference([0, 1, 2], [1, 2, 3])) == "not reproduced"
    same = paired_difference([1, 2, 3], [1, 2, 3])
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert judge(same) == "inconclusive"


def test_rounding_is_no_difference():
    baseline = [0.7, 71.2, 3.3]
    for sign in (1, -1):
        off = [value * (1 + sign * 4e-16) for value in baseline]
        assert all((a - b) * sign > 0 for a, b in zip(off, baseline, strict=True))
        assert judge(paired_difference(off, baseline)) == "inconclusive"
        assert judge(paired_difference(off, baseline), lower=True) == "inconclusive"
    equal = [1e-15, 1e-15, 1e-15]
    assert judge(paired_difference([0.5 + e for e in equal], [0.5] * 3)) == "inconclusive"
    below, above = [0.3, 0.8, 0.55], [0.25, 0.75, 0.5]  # 0.05 apart, up to rounding
    assert judge(paired_difference(below, above), by=0.05) == "inconclusive"
    assert judge(paired_difference(above, below), by=0.05, lower=True) == "inconclusive"
    assert judge(paired_difference([1e-9 + value for value in baseline], baseline)) == "reproduced"


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_an_effect_of_zero_is_inconclusive_as_often_as_promised(seeds):
    rng, trials = np.random.default_rng(20), 3000
    shared = rng.normal(0, 5, (trials, seeds))  # what a seed does to both arms drops out
    method, baseline = shared + rng.normal(0, 1, (2, trials, seeds))
    verdicts = [judge(paired_difference(*rows)) for rows in zip(method, baseline, strict=True)]
    rate = verdicts.count("inconclusive") / trials
    assert abs(rate - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)
    sides = verdicts.count("reproduced"), verdicts.count("not reproduced")
    assert abs(sides[0] - sides[1]) < 4 * np.sqrt(0.05 * trials)


def test_an_effect_that_is_there_is_found():
    rng = np.random.default_rng(3)
    effect = rng.normal(2, 0.5, (200, 5))
    assert [judge(paired_difference(row, [0.0] * 5)) for row in effect].count("reproduced") > 190


@pytest.mark.parametrize(
    ("method", "baseline", "message"),
    [([1], [2], "1 seed"), ([1, 2], [1], "same seeds"), ([1, np.nan], [1, 2], "finite"), ([], [], "0 seed")],
)
def test_what_cannot_be_compared(method, baseline, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(method, baseline)
