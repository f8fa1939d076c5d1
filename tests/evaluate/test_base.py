"""Intervals against the closed form and against simulation."""

import math

import numpy as np
import pytest

from foveal.evaluate.base import Setting, ratio, share


def test_a_share_has_wilsons_interval():
    z, n, k = 1.959963984540054, 40, 31
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    found = share("accuracy", [True] * k + [False] * (n - k), chance=0.5)
    assert found.value == p
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert (found.n, found.chance, found.better) == (n, 0.5, "higher")
    assert share("all", [True] * 3).high == 1.0


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    assert ratio("f1", [2, 0], [2, 8]).value == pytest.approx(0.2)
    assert ratio("mean length", [3, 5], unit="words").value == 4
    assert ratio("nothing", [0, 0], [0, 0]).value == 0


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        weights = rng.integers(1, 5, 60)
        hits = rng.binomial(weights, 0.3)
        found = ratio("rate", hits, weights)
        inside += found.low <= 0.3 <= found.high
    assert 88 <= inside <= 99


def test_a_ratio_is_the_same_every_time():
    np.random.seed(3)  # noqa: NPY002 - a poisoned global generator must not matter
    first = ratio("x", [1, 0, 1, 1], [1, 1, 2, 3])
    np.random.seed(4)  # noqa: NPY002
    assert ratio("x", [1, 0, 1, 1], [1, 1, 2, 3]) == first


def test_bad_numbers():
    with pytest.raises(ValueError, match="no case"):
        share("accuracy", [])
    with pytest.raises(ValueError, match="not finite"):
        ratio("psnr", [1.0, float("nan")])
    with pytest.raises(ValueError, match="denominators"):
        ratio("f1", [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="n=0"):
        Setting(0)
    with pytest.raises(ValueError, match="seed=-1"):
        Setting(1, -1)
