"""Paired statistics: the difference of two arms over seeds, its interval, and the verdict on a claim.

    d_s = method_s − baseline_s                    for each seed s of n
    interval = mean(d) ± t(n − 1, 0.975) · sd(d) / √n

This is the interval of the paired t-test. It speaks of the seeds: another draw of data, initial weights and order.
Three seeds have few degrees of freedom: t is 4.3, and small effects stay *inconclusive* until more seeds are run.
Claims are judged one by one: of twenty claims about nothing, one is expected to get a verdict all the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["reproduced", "inconclusive", "not reproduced"]
CONFIDENCE = 0.95
ROUNDING = 1e-12  # of the largest value: above what sums of float64 leave behind, below any difference of substance


@dataclass(frozen=True)
class Difference:
    """Mean, standard deviation and 95 % interval of a paired difference over ``seeds`` seeds.

    By less than ``rounding`` no two differences differ.
    """

    mean: float
    sd: float
    low: float
    high: float
    seeds: int
    rounding: float = 0.0


def paired_difference(method: Sequence[float], baseline: Sequence[float]) -> Difference:
    """``method − baseline``, value by value: both lists hold one metric for the same seeds in the same order.

    Differences that are all alike have an interval of no width: nothing in the arms depends on the seed, and the
    verdict is the sign, unless they are no more than rounding. ValueError for lists of different length, fewer than
    two seeds, or values that are not finite.
    """
    left, right = np.asarray(method, float), np.asarray(baseline, float)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"method {left.shape} and baseline {right.shape} must be two lists over the same seeds")
    if len(left) < 2:
        raise ValueError(f"method has {len(left)} seed: an interval needs at least two")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError(f"method={method!r} and baseline={baseline!r} must be finite")
    difference = left - right
    n, mean, sd = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
    rounding = ROUNDING * float(max(np.abs(left).max(), np.abs(right).max()))
    return Difference(mean, sd, mean - half, mean + half, n, rounding)


def judge(difference: Difference, by: float = 0.0, lower: bool = False) -> Verdict:
    """The verdict on "the difference exceeds ``by``", or with ``lower`` on "falls below ``-by``".

    *reproduced*: the whole interval lies on the claimed side of the margin; *not reproduced*: on the other side;
    *inconclusive*: the margin lies inside (or on the edge, up to rounding).
    """
    low, high = (-difference.high, -difference.low) if lower else (difference.low, difference.high)
    if low > by + difference.rounding:
        return "reproduced"
    return "not reproduced" if high < by - difference.rounding else "inconclusive"
