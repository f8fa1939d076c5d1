"""How good the connectors are on emoji that none of them was fitted on, with chance and intervals beside.

Two questions. Retrieval: of 200 names, which rank has the right one? Naming: does what was said of a picture hold its
head noun more often than what was said of another picture? The second answer is paired with its control, for a model
that says "face" to everything is often right.

Pictures are one of each family, so an interval over pictures is an interval over families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveal.data.text import mentions

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1], or a difference of two, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Retrieval:
    """Where the right name came among ``candidates``."""

    candidates: int
    pictures: int
    first: Estimate
    first_five: Estimate
    median_rank: float

    @property
    def chance(self) -> float:
        """Share of right names in first place for a guess."""
        return 1 / self.candidates

    @property
    def times_chance(self) -> float:
        return self.first.value / self.chance


@dataclass(frozen=True)
class Naming:
    """How often the right head noun was said of a picture, and how often of another one."""

    pictures: int
    own: Estimate
    shuffled: Estimate
    gain: Estimate

    @property
    def beats_shuffled(self) -> bool:
        """Whether the interval of the paired difference lies above zero."""
        return self.gain.low > 0


def name_ranks(z: Float[Tensor, "n d"], names: Float[Tensor, "m d"]) -> np.ndarray:
    """Rank from 1 to m, by cosine, of name i for picture i; names that tie with it count as better. m ≥ n.

    Raises ValueError when there are fewer names than pictures, or dimensions differ.
    """
    if z.ndim != 2 or names.ndim != 2 or z.shape[1] != names.shape[1] or len(names) < len(z):
        raise ValueError(f"z {tuple(z.shape)} and names {tuple(names.shape)} must be (n, d) and (m, d) with m ≥ n")
    cosine = F.normalize(z, dim=1) @ F.normalize(names, dim=1).mT
    return (cosine >= cosine.diagonal()[:, None]).sum(1).numpy()


def retrieval(z: Float[Tensor, "n d"], names: Float[Tensor, "m d"], rng: np.random.Generator) -> Retrieval:
    """`Retrieval` of the names of n pictures, which come first, among m."""
    ranks = name_ranks(z, names)

    def within(k: int) -> Estimate:
        return _bootstrap(len(ranks), lambda rows: float((ranks[rows] <= k).mean()), rng)

    return Retrieval(len(names), len(ranks), within(1), within(5), float(np.median(ranks)))


def naming(said: Sequence[str], nouns: Sequence[str], rng: np.random.Generator) -> Naming:
    """`Naming` for texts ``said`` of pictures whose head nouns are ``nouns``.

    The control is the mean over all ways to give a picture another picture's text. Each resample draws pictures with
    texts and forms its own control, so that the interval knows that both sides vary together.
    """
    if len(said) != len(nouns) or len(said) < 2:
        raise ValueError(f"said has {len(said)} texts for {len(nouns)} nouns: must be as many, and at least 2")
    table = np.array([[mentions(text, noun) for text in said] for noun in nouns])
    states = rng.bit_generator.state

    def estimate(statistic: Callable[[float, float], float]) -> Estimate:
        rng.bit_generator.state = states  # the same resamples for all three
        return _bootstrap(len(table), lambda rows: statistic(*_own_and_shuffled(table, rows)), rng)

    return Naming(
        len(table),
        estimate(lambda own, shuffled: own),
        estimate(lambda own, shuffled: shuffled),
        estimate(lambda own, shuffled: own - shuffled),
    )


def _own_and_shuffled(table: Bool[np.ndarray, "n n"], rows: np.ndarray) -> tuple[float, float]:
    """Share of pictures named by their own text, and by the text of another picture (never by a copy of their own)."""
    counts = np.bincount(rows, minlength=len(table)).astype(float)
    right = np.diag(table)
    others = counts @ table @ counts - (counts**2 * right).sum()
    pairs = counts.sum() ** 2 - (counts**2).sum()  # 0 when one picture was drawn every time
    return float(counts @ right / counts.sum()), float(others / pairs) if pairs else 0.0


def _bootstrap(n: int, statistic: Callable[[np.ndarray], float], rng: np.random.Generator) -> Estimate:
    """Percentile interval over resampled pictures."""
    draws = [statistic(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(statistic(np.arange(n)), float(low), float(high))
