"""Who says where to look in a large picture: the region focus module, or a rule in its place."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.compress.lrs import LargeImageLlava
from foveal.compress.lrs_focus import LevelTokens
from foveal.recipes._large import Picture

Rule = Callable[[Picture, torch.Generator, LevelTokens], Tensor]
"""(picture, random, tokens of a level) to one score for each token."""


class ByRule(LargeImageLlava):
    """Scores by ``rule`` where it has one, else by its module."""

    rule: Callable[[LevelTokens], Tensor] | None = None

    def _score(self, prompt: Any, tokens: LevelTokens) -> Tensor:
        return super()._score(prompt, tokens) if self.rule is None else self.rule(tokens)


def chance(picture: Picture, rng: torch.Generator, tokens: LevelTokens) -> Float[Tensor, " v"]:
    """Knows nothing."""
    return torch.rand(len(tokens.features), generator=rng)


def even(picture: Picture, rng: torch.Generator, tokens: LevelTokens) -> Float[Tensor, " v"]:
    """Spreads over the places: of the multiples of the golden ratio, the highest are about equally far apart."""
    return torch.arange(len(tokens.features)) * (5**0.5 / 2 - 0.5) % 1


def near(picture: Picture, rng: torch.Generator, tokens: LevelTokens) -> Float[Tensor, " v"]:
    """Knows where the square asked about, the first of the picture, is: minus the distance to its centre."""
    rows, columns = tokens.hw
    places, (x, y) = tokens.valid.nonzero()[:, 0], picture.centre()
    return -torch.hypot((places // columns + 0.5) / rows - y, (places % columns + 0.5) / columns - x)
