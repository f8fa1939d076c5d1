"""What every evaluation shares: the items that a model is shown, the task that makes and scores them, and the numbers.

A task is three pure functions: `make` the items of a seed, ask the model about some of them, `score` all its outputs.
Outputs are plain JSON and are kept, so that a score can be disputed and computed again.

Shares of independent cases come with Wilson's 95 % interval. Ratios of sums (F1, CHAIR, mean length), whose cases weigh
differently, come with the 95 % interval of the percentile bootstrap over items, drawn from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

Kind = Literal["dual encoder", "vision-language", "text-to-image"]
Better = Literal["higher", "lower", "neither"]
Json = dict[str, Any]
Pictures = Callable[[], list[UInt8[np.ndarray, "_ _ 3"]]]

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A number with its interval (``low`` to ``high``), what chance would give, and the number of cases behind it.

    Fields are None where the thing has no meaning, such as the chance level of a mean length.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    n: int
    better: Better = "higher"
    unit: str = "share"

    def as_json(self) -> Json:
        """Without the name, under which it stands."""
        found = asdict(self)
        del found["name"]
        return found


@dataclass(frozen=True)
class Item:
    """One thing that the model is shown. Pictures are drawn or read only when their turn comes."""

    key: str
    """Unique in its task."""
    texts: tuple[str, ...] = ()
    """What the model reads: a prompt, a caption, or the prompts of one class."""
    pictures: Pictures | None = None
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer knows, as JSON takes it; the model never sees it."""


@dataclass(frozen=True)
class Setting:
    """What items are made from: their number, the seed, and the user's own files where a task needs them."""

    n: int
    seed: int = 0
    data: Path | None = None
    images: Path | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or self.seed < 0:
            raise ValueError(f"n={self.n}, seed={self.seed}: n must be at least 1 and the seed at least 0")


@dataclass(frozen=True)
class Scored:
    """The metrics of a task, and one readable row for each judged case."""

    metrics: list[Metric]
    rows: list[Json]


@dataclass(frozen=True)
class Task:
    """A named measurement that any model of its kind can take.

    Attributes:
        name: as ``foveal eval --task`` takes it.
        kind: of the models that it is for.
        summary: one line.
        size: default number of items (of scenes, classes or pictures, as the summary says).
        scorer: how outputs are judged, in one line that is stored with the score.
        make: the items of a setting, always the same ones.
        ask: the model's outputs for some of the items, one JSON object each, whatever the other items are.
        score: metrics and rows from all items and all outputs.
        needs: fields of `Setting` that must be given; tasks without any run by default.
    """

    name: str
    kind: Kind
    summary: str
    size: int
    scorer: str
    make: Callable[[Setting], list[Item]]
    ask: Callable[[Any, Sequence[Item]], list[Json]]
    score: Callable[[Sequence[Item], Sequence[Json]], Scored]
    needs: tuple[str, ...] = ()


def share(name: str, hits: Sequence[bool], chance: float | None = None, better: Better = "higher") -> Metric:
    """Share of cases that are hits, with Wilson's interval; ValueError when there is no case."""
    from scipy.stats import binomtest

    n, k = len(hits), sum(map(bool, hits))
    if not n:
        raise ValueError(f"{name} has no case: evaluate more items (--n)")
    interval = binomtest(k, n).proportion_ci(CONFIDENCE, method="wilson")
    return Metric(name, k / n, float(interval.low), float(interval.high), chance, n, better)


def ratio(
    name: str,
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    chance: float | None = None,
    better: Better = "higher",
    unit: str = "share",
) -> Metric:
    """Sum of the numerators over that of the denominators (default: 1 each, so a mean), bootstrapped over the items.

    0 when the denominators add up to nothing. ValueError when there is no item or a value is not finite.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise ValueError(f"{name}: {top.shape} numerators for {bottom.shape} denominators; give one each, at least one")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise ValueError(f"{name} has values that are not finite: look at the stored predictions")
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(top), size=len(top))
        drawn.append(_over(top[rows].sum(), bottom[rows].sum()))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, (tail, 100 - tail))
    value = _over(math.fsum(top), math.fsum(bottom))
    return Metric(name, value, float(low), float(high), chance, len(top), better, unit)


def shown(value: float | None, unit: str) -> str:
    """A share as a percentage, anything else with its unit; "" for None."""
    if value is None:
        return ""
    return f"{value:.1%}" if unit == "share" else f"{value:.2f} {unit}"


def _over(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else 0.0
