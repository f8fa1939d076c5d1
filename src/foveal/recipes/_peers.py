"""What nano-llava's strategies of keeping rates are compared with, at the same mean rate."""

import math

from foveal.compress.baselines import AveragePool, FastV, RandomDrop
from foveal.compress.runtime import PrefillReducer

GRID = 12
"""Image tokens a side."""


def fastv(layers: int, budget: float) -> PrefillReducer:
    return FastV(2, (budget * layers - 2) / (layers - 2))


def randomdrop(budget: float) -> PrefillReducer:
    """Before the first layer; what stays keeps its position numbers, as under the strategies."""
    return RandomDrop((0,), (budget,), positions="original")


def averagepool(budget: float) -> PrefillReducer:
    """Before the first layer, to the square grid that comes closest; means are numbered anew."""
    return AveragePool(round(GRID * math.sqrt(budget)))
