"""G-Search and P-Sigmoid: how many image tokens does each decoder layer need?

From layer to layer, but for the first, attention ranks the image tokens alike (Kendall's τ). So what a deep layer needs
is part of what a shallow one needs, and a strategy is a list of keeping rates r_0 ≥ r_1 ≥ … ≥ r_{n−1}: layer l
processes ⌊N·r_l⌋ of N tokens (`LayerwiseKeep`). Two ways to find one, on a few hundred examples of one's own:

    G-Search    the cheapest strategy that still reaches a target: for l = start … n−1
                r_l = min { j/levels ≤ r_{l−1} : evaluate(r_0 … r_{l−1}, j/levels, j/levels, …) ≥ target }
    P-Sigmoid   the best strategy of a given mean rate: r_l = floor + (1−floor)·σ(−k·(x_l−c)), with k and floor by
                Bayesian optimisation and c from the budget

Shiyu Zhao, Zhenting Wang, Felix Juefei-Xu, et al.: Accelerating Multimodal Large Language Models by Searching Optimal
Vision Token Reduction. CVPR 2025, arXiv 2412.00556.

Departures: no official code is public. The search along one layer is a bisection, which finds the same minimum where
performance does not fall with more tokens; the form of the sigmoid is ours. Given labels, the answers do not ask.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import kendalltau
from torch import Tensor

from foveal.compress.gsearch_bayes import bayes_opt as bayes_opt
from foveal.compress.gsearch_bayes import expected_improvement as expected_improvement
from foveal.compress.gsearch_bayes import gp_posterior as gp_posterior
from foveal.compress.gsearch_keep import LayerwiseKeep as LayerwiseKeep
from foveal.compress.gsearch_sigmoid import check_budget
from foveal.compress.gsearch_sigmoid import fit_center as fit_center
from foveal.compress.gsearch_sigmoid import p_sigmoid as p_sigmoid

_STEEPNESS = (0.5, 100.0)
"""From nearly one rate for all layers to nearly a step."""


@dataclass(frozen=True)
class GSearchResult:
    """What a search found."""

    rates: list[float]
    """Share of the image tokens that each decoder layer keeps."""
    evaluations: int
    """How often the performance was measured for it."""


def kendall_tau(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Kendall's τ-a of two scorings: (concordant − discordant pairs) / all pairs, ties counted as neither.

    Raises ValueError when they differ in size, have fewer than two entries or hold NaN.
    """
    first, second = (torch.as_tensor(scores).detach().double().cpu().numpy() for scores in (a, b))
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"a {first.shape} and b {second.shape} must be (n,) of one size n ≥ 2")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a or b holds NaN, which has no rank")
    pairs = math.comb(len(first), 2)
    untied = [pairs - sum(math.comb(n, 2) for n in np.unique(x, return_counts=True)[1]) for x in (first, second)]
    if 0 in untied:
        return 0.0
    # SciPy has τ-b, which divides by the pairs without ties instead; what both divide is a whole number
    tau_b = kendalltau(first, second).statistic
    return round(tau_b * math.sqrt(untied[0]) * math.sqrt(untied[1])) / pairs


def g_search(
    evaluate: Callable[[list[float]], float],
    n_layers: int,
    target: float,
    start_layer: int = 2,
    levels: int = 32,
    min_level: int = 0,
) -> GSearchResult:
    """The smallest keeping rates, found from the shallow layers to the deep, whose performance reaches ``target``.

    At layer l the rates before are settled, and one rate is tried for l and all later layers together, as dropped
    tokens cannot come back. The result is optimal if more tokens never hurt.

    Args:
        evaluate: keeping rates of all layers -> performance, larger is better.
        n_layers: decoder layers.
        target: performance to hold, e.g. that of the full model minus the drop one allows.
        start_layer: first layer that may keep fewer; `LayerwiseKeep` needs 2 or more.
        levels: rates are multiples of 1 / levels.
        min_level: smallest multiple to try.

    Costs at most 1 + ⌈log2(levels + 1)⌉ evaluations per layer from ``start_layer`` on.
    Raises ValueError when the full model misses the target, for a negative ``start_layer``, ``levels`` below
    1, a ``min_level`` outside [0, levels] and a performance that is not a finite number.
    """
    if n_layers < 1 or start_layer < 0:
        raise ValueError(f"n_layers={n_layers}, start_layer={start_layer}: must be at least 1 and 0")
    if levels < 1 or not 0 <= min_level <= levels:
        raise ValueError(f"levels={levels} must be at least 1, and min_level={min_level} between 0 and that")
    measure = _Counted(evaluate)
    full = measure([1.0] * n_layers)
    if not full >= target:
        raise ValueError(f"target={target}: the full model itself reaches only {full}; allow a larger drop")
    settled, level = [1.0] * min(start_layer, n_layers), levels
    while len(settled) < n_layers and level > min_level:
        low = min_level
        while low < level:  # `level` reaches the target, all below `low` miss it
            middle = (low + level) // 2
            if measure(settled + [middle / levels] * (n_layers - len(settled))) >= target:
                level = middle
            else:
                low = middle + 1
        settled.append(level / levels)
    return GSearchResult(settled + [level / levels] * (n_layers - len(settled)), measure.calls)


def search_p_sigmoid(
    evaluate: Callable[[list[float]], float],
    n_layers: int,
    budget: float,
    start_layer: int = 2,
    n_init: int = 4,
    n_iter: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[GSearchResult, float]:
    """The falling sigmoid of mean rate ``budget`` with the best performance among n_init + n_iter tries, and that.

    Steepness (its logarithm) and floor are searched; the centre follows from the budget, which every try meets.

    Args:
        evaluate: keeping rates of all layers -> performance, larger is better.
        n_layers: decoder layers.
        budget: mean of the rates over all layers, between start_layer / n_layers and 1.
        start_layer: first layer that may keep fewer; `LayerwiseKeep` needs 2 or more.
        n_init, n_iter, generator: see `bayes_opt`.

    Raises ValueError for a budget that cannot be met and a performance that is not a finite number.
    """
    check_budget(n_layers, budget, 0.0, start_layer)
    measure = _Counted(evaluate)

    def strategy(point: Float[Tensor, "2"]) -> list[float]:
        steepness, floor = math.exp(point[0]), float(point[1])
        center = fit_center(n_layers, steepness, budget, floor, start_layer)
        return p_sigmoid(n_layers, steepness, center, floor, start_layer)

    highest_floor = (budget * n_layers - start_layer) / (n_layers - start_layer)
    bounds = [[math.log(steepness) for steepness in _STEEPNESS], [0.0, 0.95 * highest_floor]]
    best, value, _ = bayes_opt(lambda point: measure(strategy(point)), bounds, n_init, n_iter, generator)
    return GSearchResult(strategy(best), measure.calls), value


def strategy_cost(rates: Sequence[float], n_image: int, hidden_size: int, intermediate_size: int) -> float:
    """FLOPs that a strategy spends on image tokens, as a share of those with all of them in every layer; in (0, 1].

    Per layer 4nd² + 2n²d + 3ndm for n tokens (see `foveal.compress.visual_flops`), at n = n_image·rate.
    Raises ValueError for rates that are none or lie outside [0, 1], and sizes below 1.
    """
    if not len(rates) or any(not 0 <= rate <= 1 for rate in rates):
        raise ValueError(f"rates={list(rates)}: give one share in [0, 1] for each decoder layer")
    if min(n_image, hidden_size, intermediate_size) < 1:
        raise ValueError(f"n_image={n_image}, {hidden_size=}, {intermediate_size=} must be at least 1")
    linear = 4 * hidden_size + 3 * intermediate_size
    shares = [rate * (linear + 2 * n_image * rate) / (linear + 2 * n_image) for rate in rates]
    return sum(shares) / len(shares)


class _Counted:
    """``evaluate``, its calls counted and its results checked."""

    def __init__(self, evaluate: Callable[[list[float]], float]) -> None:
        self.evaluate, self.calls = evaluate, 0

    def __call__(self, rates: list[float]) -> float:
        self.calls += 1
        performance = float(self.evaluate(list(rates)))
        if not math.isfinite(performance):
            raise ValueError(f"evaluate returned {performance} for rates={rates}: it must be a finite number")
        return performance
