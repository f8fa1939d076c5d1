"""What ways of dropping tokens are compared with, at a mean keeping rate; the tokens keep their position numbers."""

import math

from foveal.compress.baselines import AveragePool, FastV, RandomDrop
from foveal.compress.runtime import PrefillReducer


def fastv(layers: int, budget: float) -> PrefillReducer:
    return FastV(2, (budget * layers - 2) / (layers - 2))


def randomdrop(budget: float) -> PrefillReducer:
    """Before the first layer."""
    return RandomDrop((0,), (budget,), positions="original")


def averagepool(budget: float, side: int = 12) -> PrefillReducer:
    """Before the first layer, to the square grid that comes closest."""
    return AveragePool(round(side * math.sqrt(budget)))
