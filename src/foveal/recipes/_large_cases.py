"""The questions that `lrs` asks about large pictures, and what came of them."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from foveal.compress.lrs import LargeImageLlava
from foveal.lab import Run
from foveal.recipes._large import Picture, pictures, words

SIZES, EACH, PIXELS = (128, 256, 512), 40, (12.0, 16.0)
"""Pixels of the pictures, how many of each size, and pixels of the squares."""


class Outcome(NamedTuple):
    """Of one question, which is about the first square of a picture."""

    size: int
    """Of the picture, in pixels."""
    right: bool
    hit: bool = False
    """Was the tile with the square's centre encoded at the picture's own resolution?"""
    tiles: int = 1
    """Encoded ones, with the thumbnail."""


def cases(run: Run) -> list[Picture]:
    """Pictures that the host has not seen."""
    each = run.steps(EACH)  # a couple in a smoke run
    return [picture for size in SIZES for picture in pictures(20_000 + run.seed, each, size, PIXELS)]


def outcome(picture: Picture, logits: Float[Tensor, "1 l v"], plugin: LargeImageLlava | None = None) -> Outcome:
    """What the model said after the prompt, and what ``plugin``, if there was one, has fetched for it."""
    size, right = len(picture.image), [int(logits[0, -1].argmax())] == words(picture.circles[0])
    if plugin is None or plugin.last is None:
        return Outcome(size, right)
    side = size // plugin.tile
    x, y = picture.centre()
    finest = 2**plugin.last.level == side  # levels have 2, 4, 8 … tiles a side
    hit = finest and [int(y * side), int(x * side)] in plugin.last.tiles[-1].tolist()
    return Outcome(size, right, hit, 1 + plugin.last.tiles_encoded)


def scores(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Percentages over all pictures, accuracy also over those of each size; and the mean number of tiles."""
    by_size = {f"at_{size}": [one.right for one in outcomes if one.size == size] for size in SIZES}
    return {
        "accuracy": 100 * fmean(one.right for one in outcomes),
        **{name: 100 * fmean(right) for name, right in by_size.items()},
        "hit": 100 * fmean(one.hit for one in outcomes),
        "tiles": fmean(one.tiles for one in outcomes),
    }
