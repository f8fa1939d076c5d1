"""Strategies of keeping rates for nano-llava that are searched on calibration questions, or drawn by chance."""

from foveal.compress.gsearch import g_search, search_p_sigmoid
from foveal.lab import Run
from foveal.recipes._lvlm_search import prompts
from foveal.recipes._strategies import falling_by_chance

LAYERS, START, TRIES = 6, 2, 9
CALIBRATION = (0, 24)
"""First seed, and questions of each kind."""


def searched(run: Run) -> list[float]:
    """By G-Search, for `Run.shared`."""
    asked = run.shared(prompts, *CALIBRATION)
    return g_search(asked.right, LAYERS, asked.right(None) - 0.5, START, levels=8).rates


def sigmoid(run: Run, budget: float) -> list[float]:
    """The best P-Sigmoid of nine, proposed by Bayesian optimisation."""
    asked, generator = run.shared(prompts, *CALIBRATION), run.generator("search")
    return search_p_sigmoid(asked.right, LAYERS, budget, START, 3, TRIES - 3, generator)[0].rates


def chance(run: Run, budget: float) -> list[float]:
    """The best of nine falling strategies that were drawn."""
    generator = run.generator("search")
    tries = [falling_by_chance(LAYERS, START, budget, generator) for _ in range(TRIES)]
    return max(tries, key=run.shared(prompts, *CALIBRATION).right)
