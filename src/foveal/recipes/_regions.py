"""Scenes put together from a stock of regions: three things and a distractor, each with its own place."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from foveal.lab import Run
from foveal.recipes._regions_stock import Stock
from foveal.recipes._regions_words import NOUNS, Things

REGIONS = 4


@dataclass(frozen=True)
class Regions:
    """What all texts about ``n`` scenes are read with."""

    stock: Stock
    chosen: Int[Tensor, "n r"]
    things: list[Things]
    """(colour, noun) of the regions 0, 1, 2 of every scene."""

    def batch(self, ids: Int[Tensor, "b l"], rows: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Texts with the regions of scenes ``rows``."""
        chosen = self.chosen[rows]
        return {
            "input_ids": ids,
            "text_mask": ids != 0,
            "region_features": self.stock.features[chosen],
            "region_positions": self.stock.positions[chosen],
            "region_mask": torch.ones(chosen.shape, dtype=torch.bool),
            "detector_probs": self.stock.probs[chosen],
        }


def scenes(run: Run, parts: Stock, n: int, purpose: str) -> Regions:
    """``n`` scenes of three things with different nouns and a distractor."""
    rng = run.rng(purpose)
    by_noun = [[i for i, thing in enumerate(parts.things) if thing and thing[1] == noun] for noun in NOUNS]
    ground = [i for i, thing in enumerate(parts.things) if thing is None]
    nouns = [rng.choice(len(NOUNS), 3, replace=False) for _ in range(run.size(n))]
    chosen = [[*(int(rng.choice(by_noun[noun])) for noun in row), int(rng.choice(ground))] for row in nouns]
    things = [[thing for i in row if (thing := parts.things[i])] for row in chosen]
    return Regions(parts, torch.tensor(chosen), things)
