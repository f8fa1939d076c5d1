"""Strategies of keeping rates that nobody has to search: mean ``budget``, all tokens up to the layer ``start``."""

import torch


def one_drop(layers: int, start: int, budget: float) -> list[float]:
    """The same rate from ``start`` on."""
    return [1.0] * start + [_later(layers, start, budget)] * (layers - start)


def ramp(layers: int, start: int, budget: float) -> list[float]:
    """Falls by the same amount at every layer, to nothing behind the last."""
    mean, n = _later(layers, start, budget), layers - start
    return [1.0] * start + [min(1.0, 2 * mean * (n - i) / (n + 1)) for i in range(n)]


def falling_by_chance(layers: int, start: int, budget: float, generator: torch.Generator) -> list[float]:
    """Uniform numbers in falling order, scaled to the mean; drawn again until none is above 1."""
    while True:
        rates = torch.rand(layers - start, generator=generator).sort(descending=True).values
        rates = rates * (budget * layers - start) / rates.sum()
        if rates[0] <= 1:
            return [1.0] * start + rates.tolist()


def _later(layers: int, start: int, budget: float) -> float:
    return (budget * layers - start) / (layers - start)
