import itertools
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from foveal.compress.base import visual_flops
from foveal.compress.gsearch import (
    GSearchResult,
    LayerwiseKeep,
    bayes_opt,
    expected_improvement,
    fit_center,
    g_search,
    gp_posterior,
    kendall_tau,
    p_sigmoid,
    search_p_sigmoid,
    strategy_cost,
)

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/gsearch.npz"))


def golden(case):
    """Its arrays as tensors, its scalars as numbers."""
    mine = {name.split("__")[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}
    return {name: torch.from_numpy(value) if value.ndim else value.item() for name, value in mine.items()}


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(torch.as_tensor(actual, dtype=torch.float64), expected, atol=atol, rtol=0)


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_tau():
    ref = golden("tau")
    assert kendall_tau(ref["a"], ref["b"]) == pytest.approx(ref["expected"], abs=1e-12)


@pytest.mark.parametrize("case", ["psig0", "psig1"])
def test_golden_sigmoid(case):
    ref = golden(case)
    n, k, c, floor, start = ref["args"].tolist()
    close(p_sigmoid(int(n), k, c, floor, int(start)), ref["expected"])


def test_golden_center():
    ref = golden("center0")
    n, k, budget, floor, start = ref["args"].tolist()
    center = fit_center(int(n), k, budget, floor, int(start))
    assert center == pytest.approx(ref["expected"], abs=1e-9)
    close(p_sigmoid(int(n), k, center, floor, int(start)), ref["rates"], atol=1e-9)


def test_golden_process_and_improvement():
    ref, ei = golden("gp"), golden("ei")
    mean, std = gp_posterior(ref["x"], ref["y"], ref["xq"], ref["lengthscale"], ref["signal"], ref["noise"])
    close(mean, ref["mean"], atol=1e-10)
    close(std, ref["std"], atol=1e-10)
    close(expected_improvement(ref["mean"], ref["std"], ei["best"], ei["xi"]), ei["expected"])


def test_golden_greedy():
    ref = golden("greedy")
    found = g_search(oracle(ref["need"].tolist()), 8, 1.0, levels=ref["levels"])
    close(found.rates, ref["expected"])


# Ranking --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=40))
def test_tau_counts_pairs(entries):
    a, b = (torch.tensor(scores, dtype=torch.float32) for scores in zip(*entries, strict=True))
    want = sum((x - y) * (u - v) > 0 for (x, u), (y, v) in itertools.combinations(entries, 2))
    want -= sum((x - y) * (u - v) < 0 for (x, u), (y, v) in itertools.combinations(entries, 2))
    assert kendall_tau(a, b) == pytest.approx(want / math.comb(len(entries), 2), abs=1e-12)


# Greedy search --------------------------------------------------------------------------------------------------------


def oracle(need):
    """1 where every layer has what it needs; refuses strategies that bring dropped tokens back."""

    def evaluate(rates):
        assert len(rates) == len(need)
        assert all(first >= second for first, second in pairwise(rates))
        return float(all(rate >= least for rate, least in zip(rates, need, strict=True)))

    return evaluate


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 12), st.integers(0, 40)
)
def test_greedy_finds_the_optimum_within_the_bound(need, levels, start, least):
    start, least = min(start, len(need) - 1), min(least, levels)
    need = sorted((number / 1000 for number in need), reverse=True)
    seen = []

    def evaluate(rates):
        seen.append(tuple(rates))
        assert rates[:start] == [1.0] * start
        return oracle(need)(rates)

    found = g_search(evaluate, len(need), 1.0, start, levels, least)
    at_least = [max(math.ceil(rate * levels), least) / levels for rate in need]
    assert found.rates == [1.0] * start + at_least[start:]
    assert found.evaluations == len(seen) == len(set(seen))  # nothing is measured twice
    assert seen[0] == (1.0,) * len(need)
    assert len(seen) <= 1 + (len(need) - start) * math.ceil(math.log2(levels + 1))


def test_the_allowed_drop_is_spent_once():
    """Performance falls with every token dropped: no layer may lose against the one before it, only against target."""
    found = g_search(lambda rates: sum(rates) / len(rates), 10, 0.7, start_layer=1, levels=100)
    assert sum(found.rates) / 10 >= 0.7
    assert found.rates[1] == pytest.approx(0.67)  # the first layer that may drop takes all of it


def test_greedy_stops_when_nothing_is_left_to_drop():
    found = g_search(lambda rates: 1.0, 32, 1.0)
    assert found == GSearchResult([1.0] * 2 + [0.0] * 30, 1 + 6)


# Sigmoid --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 1e4), st.floats(0, 0.99), st.integers(0, 59), st.floats(1e-6, 1 - 1e-6))
def test_every_budget_is_met_by_falling_rates(n, steepness, floor, start, share):
    start = min(start, n - 1)
    least = (start + floor * (n - start)) / n
    budget = least + share * (1 - least)
    rates = p_sigmoid(n, steepness, fit_center(n, steepness, budget, floor, start), floor, start)
    assert sum(rates) / n == pytest.approx(budget, abs=1e-10)
    assert rates[:start] == [1.0] * start
    assert all(0 <= second <= first <= 1 for first, second in pairwise(rates))
    assert min(rates) >= floor - 1e-15
    if start >= 2:
        LayerwiseKeep(rates)  # takes them as they are


def test_sigmoid_at_its_extremes():
    assert p_sigmoid(4, 0.0, 0.3, 0.2) == pytest.approx([1, 1, 0.6, 0.6])
    assert p_sigmoid(3, 5.0, 0.0) == pytest.approx([1, 1, 0.5])  # a single falling layer is at x = 0
    assert p_sigmoid(6, 1e6, 0.5) == [1, 1, 1, 1, 0, 0]


# Bayesian optimisation ------------------------------------------------------------------------------------------------


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_process_by_explicit_inverse():
    x, y, xq = random(6, 3), random(6, seed=1), random(5, 3, seed=2)

    def kernel(a, b):
        return torch.stack([1.7**2 * torch.exp(-((p - b) ** 2).sum(1) / (2 * 0.4**2)) for p in a])

    inverse = torch.linalg.inv(kernel(x, x) + 0.05 * torch.eye(6, dtype=torch.float64))
    mean, std = gp_posterior(x, y, xq, 0.4, 1.7, 0.05)
    close(mean, kernel(xq, x) @ inverse @ y, atol=1e-9)
    want = (1.7**2 - (kernel(xq, x) @ inverse @ kernel(x, xq)).diagonal()).sqrt()
    close(std, want, atol=1e-9)


def test_process_goes_through_what_was_seen_and_returns_to_what_was_not():
    x, y = random(8, 2), random(8, seed=1)
    mean, std = gp_posterior(x, y, x, 0.2, noise=1e-10)
    close(mean, y, atol=1e-6)
    assert float(std.max()) < 1e-4
    mean, std = gp_posterior(x, y, x + 100, 0.2, 1.3)
    close(mean, torch.zeros_like(y))
    close(std, torch.full_like(y, 1.3))
    assert float(gp_posterior(x, y, x, 0.2, noise=1e-18)[1].min()) >= 1e-6  # the variance is clamped


def test_improvement_is_the_mean_of_the_positive_part():
    mean, std, best = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 1.0, 0.1]), 0.4
    z = torch.from_numpy(norm.ppf((np.arange(200_000) + 0.5) / 200_000))
    want = torch.stack([(m + s * z - best - 0.05).clamp(min=0).mean() for m, s in zip(mean, std, strict=True)])
    close(expected_improvement(mean, std, best, 0.05), want, atol=1e-5)


def test_optimum_of_a_quadratic():
    """In units far from 0 to 1, with values far from standard."""
    top, width = torch.tensor([120.0, -3.4], dtype=torch.float64), torch.tensor([100.0, 4.0], dtype=torch.float64)

    def objective(x):
        return 1e4 - 500 * float((((x - top) / width) ** 2).sum())

    bounds = [[50.0, 150.0], [-5.0, -1.0]]
    x, y, history = bayes_opt(objective, bounds, generator=torch.Generator().manual_seed(3))
    close((x - top) / width, torch.zeros(2, dtype=torch.float64), atol=0.03)
    assert len(history) == 20
    assert y == objective(x) == max(value for _, value in history)
    assert history[0][0].tolist() == [100.0, -3.0]  # the middle
    assert all(50 <= a <= 150 and -5 <= b <= -1 for a, b in (point.tolist() for point, _ in history))
    early = max(value for _, value in history[:4])
    assert 1e4 - y < 0.1 * (1e4 - early)


def test_noisy_and_flat_values():
    """Accuracies repeat themselves and jump: no Cholesky factor may fail."""
    noise = torch.Generator().manual_seed(1)
    x, _, _ = bayes_opt(
        lambda x: round(float(-((x - 0.7) ** 2).sum() + 0.05 * torch.randn(1, generator=noise)), 2), [[0, 1]], 4, 25
    )
    assert abs(float(x) - 0.7) < 0.3
    assert bayes_opt(lambda x: 0.5, [[0, 1]], 2, 6)[1] == 0.5


def test_the_generator_decides():
    def points(seed):
        return torch.stack([p for p, _ in bayes_opt(lambda x: float(x.sin().sum()), [[0, 9]] * 2, 3, 3, seed)[2]])

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    state = torch.random.get_rng_state()
    assert torch.equal(points(seeded(1)), points(seeded(1)))
    assert not torch.equal(points(seeded(1)), points(seeded(2)))
    assert torch.equal(points(None), points(None))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_search_under_a_budget():
    """A step two thirds down is best: found near, each try on the budget, the counts right."""
    tried = []
    ideal = p_sigmoid(12, 30.0, fit_center(12, 30.0, 0.5, 0.1), 0.1)

    def evaluate(rates):
        tried.append(rates)
        return -sum((rate - best) ** 2 for rate, best in zip(rates, ideal, strict=True))

    found, value = search_p_sigmoid(evaluate, 12, 0.5, generator=torch.Generator().manual_seed(0))
    assert found.evaluations == len(tried) == 20
    assert all(sum(rates) / 12 == pytest.approx(0.5, abs=1e-12) for rates in tried)
    assert value == evaluate(found.rates) == max(map(evaluate, tried[:20]))
    assert value > -0.01 > evaluate(tried[0])


# Cost -----------------------------------------------------------------------------------------------------------------


def test_cost_is_the_share_of_flops():
    full = visual_flops([576] * 4, 4096, 11008)
    assert strategy_cost([1.0, 1.0, 0.5, 0.25], 576, 4096, 11008) == pytest.approx(
        visual_flops([576, 576, 288, 144], 4096, 11008) / full, rel=1e-12
    )
    assert strategy_cost([1.0] * 7, 64, 96, 256) == 1.0


def test_whole_agreement_is_one_to_the_last_bit():
    for n in range(2, 130):
        order = torch.arange(n)
        assert (kendall_tau(order, order), kendall_tau(order, -order)) == (1.0, -1.0)


def test_nothing_to_search():
    assert g_search(lambda rates: 1.0, 2, 1.0) == GSearchResult([1.0, 1.0], 1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: kendall_tau(torch.zeros(3), torch.zeros(4)), r"a \(3,\) and b \(4,\)"),
        (lambda: kendall_tau(torch.zeros(1), torch.zeros(1)), "n ≥ 2"),
        (lambda: kendall_tau(torch.tensor([0.0, math.nan]), torch.zeros(2)), "NaN"),
        (lambda: g_search(lambda rates: 0.8, 8, 0.9), r"target=0.9.*reaches only 0.8; allow"),
        (lambda: g_search(lambda rates: 1.0, 8, math.nan), "target=nan"),
        (lambda: g_search(lambda rates: math.nan, 8, 0.9), "evaluate returned nan"),
        (lambda: g_search(lambda rates: 1.0, 8, 0.9, start_layer=-1), "start_layer=-1"),
        (lambda: g_search(lambda rates: 1.0, 8, 0.9, levels=0), "levels=0"),
        (lambda: g_search(lambda rates: 1.0, 8, 0.9, levels=4, min_level=5), "min_level=5"),
        (lambda: p_sigmoid(8, -1.0, 0.5), "steepness=-1.0"),
        (lambda: p_sigmoid(8, 1.0, math.nan), "center=nan"),
        (lambda: p_sigmoid(8, 1.0, 0.5, 1.5), "floor=1.5"),
        (lambda: p_sigmoid(8, 1.0, 0.5, start_layer=8), "start_layer=8"),
        (lambda: p_sigmoid(8, 1.0, 0.5, start_layer=-1), "start_layer=-1"),
        (lambda: fit_center(8, 0.0, 0.5), "steepness=0.0"),
        (lambda: fit_center(8, 1.0, 0.25), "budget=0.25.*between 0.25 and 1"),
        (lambda: fit_center(8, 1.0, 0.4, 0.2), "budget=0.4.*between 0.4 and 1"),
        (lambda: fit_center(12, 8.0, sum([1.0] * 2 + [0.1] * 10) / 12, 0.1), "budget=0.25"),  # but for rounding
        (lambda: fit_center(6, 8.0, 0.4666666666666667, 0.2), "budget=0.466"),
        (lambda: fit_center(8, 1.0, 1.0), "budget=1.0"),
        (lambda: fit_center(8, 1.0, 0.9, 1.0), "budget=0.9"),
        (lambda: gp_posterior(torch.zeros(3, 2), torch.zeros(2), torch.zeros(1, 2), 1.0), r"\(3, 2\).*\(2,\)"),
        (lambda: gp_posterior(torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 1), 1.0), r"\(1, 1\)"),
        (lambda: gp_posterior(torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 2), 0.0), "lengthscale=0.0"),
        (
            lambda: gp_posterior(torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 2), 1.0, 1.0, 0.0),
            "noise=0.0.*take",
        ),
        (lambda: expected_improvement(torch.zeros(2), torch.zeros(2), 0.0), "std.*positive"),
        (lambda: expected_improvement(torch.zeros(2), torch.ones(1), 0.0), "std.*shape"),
        (lambda: bayes_opt(lambda x: 0.0, [[1.0, 0.0]]), r"bounds=\[\[1.0, 0.0\]\]"),
        (lambda: bayes_opt(lambda x: 0.0, [[0.0, math.inf]]), "finite"),
        (lambda: bayes_opt(lambda x: 0.0, [0.0, 1.0]), r"bounds \(2,\) must be \(d, 2\)"),
        (lambda: bayes_opt(lambda x: math.nan, [[0.0, 1.0]]), "objective=nan"),
        (lambda: bayes_opt(lambda x: 0.0, [[0.0, 1.0]], n_init=0), "n_init=0"),
        (lambda: search_p_sigmoid(lambda rates: 0.0, 8, 0.2), "budget=0.2.*between 0.25 and 1"),
        (lambda: strategy_cost([], 64, 96, 256), "rates"),
        (lambda: strategy_cost([1.0, 1.1], 64, 96, 256), r"rates=\[1.0, 1.1\]"),
        (lambda: strategy_cost([1.0], 0, 96, 256), "n_image=0"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
