"""What a world is made of: one frozen, checked, picklable description from which every scene follows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from foveal.data.world.vocabulary import (
    CATEGORY,
    COLOURS,
    NOUNS,
    PLACES,
    SIZES,
    STYLES,
    TEXTURES,
)

SMALLEST, LARGEST = 32, 8192
BACKGROUNDS = ("plain", "gradient", "place")
SCRIPTS = ("latin", "cjk")


@dataclass(frozen=True)
class WorldConfig:
    """The distribution of scenes.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """

    size: int | tuple[int, int] = 64
    """Pixels: one number for a square, or (height, width); 32 to 8192."""
    things: tuple[int, int] = (1, 4)
    """Fewest and most things in a scene, 0 to 10."""
    nouns: tuple[str, ...] | None = None
    """Nouns that occur; None for the whole vocabulary. `BASE_NOUNS` and `NOVEL_NOUNS` make open-vocabulary splits."""
    sprites: float = 0.6
    """Share of things that are sprites rather than shapes, where `nouns` has both."""
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    """Textures of shapes; sprites are never textured."""
    sizes: tuple[str, ...] = SIZES
    places: tuple[str, ...] = PLACES
    styles: tuple[str, ...] = ("flat",)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    tint: float = 0.1
    """Share of sprites that are painted in a named colour instead of their own ones."""
    writing: float = 0.0
    """Probability of a word in the picture. It is left out where it would cover a thing too much."""
    scripts: tuple[str, ...] = SCRIPTS
    min_visible: float = 0.35
    """Least visible share of every thing, 0 to 1; 1 means that things never overlap."""
    repeats: float = 0.15
    """Probability that a further thing has the noun of an earlier one, which makes counts above one."""
    companions: float = 0.5
    """Probability that a further thing, and the place, are what naturally goes with the first thing."""
    spurious: Mapping[str, str] = field(default_factory=dict)
    """Noun to the place that its scenes are tied to; the noun that is chosen first decides."""
    spurious_strength: float = 0.95
    """Probability that a scene of such a noun is at that place."""
    imbalance: float = 0.0
    """Exponent of the long tail: the probability of a noun falls with its rank to this power; 0 is uniform."""
    depth: tuple[float, float] = (3.0, 5.0)
    """Nearest and farthest thing in metres, within 1 to 10. Something twice as far looks half as big."""
    radius: tuple[float, float] | None = None
    """Range of radii as shares of the short side that replaces sizes in perspective, such as 4/1024 to 8/1024."""

    def __post_init__(self) -> None:
        for side in self.shape:
            _check("size", self.size, SMALLEST <= side <= LARGEST, f"{SMALLEST} to {LARGEST} pixels a side")
        low, high = self.things
        _check("things", self.things, 0 <= low <= high <= 10, "(fewest, most) within 0 to 10")
        for name in ("sprites", "tint", "writing", "min_visible", "repeats", "companions", "spurious_strength"):
            _check(name, getattr(self, name), 0.0 <= getattr(self, name) <= 1.0, "a share from 0 to 1")
        _check("imbalance", self.imbalance, 0.0 <= self.imbalance < 100.0, "an exponent of at least 0")
        _check("depth", self.depth, 1.0 <= self.depth[0] < self.depth[1] <= 10.0, "(near, far) within 1 to 10 metres")
        if self.radius is not None:
            small, big = self.radius
            _check("radius", self.radius, 0.0 < small <= big <= 0.35, "(smallest, largest) within 0 to 0.35")
        _check_names("nouns", self.nouns if self.nouns is not None else NOUNS, NOUNS)
        if self.spurious:
            _check_names("spurious", tuple(self.spurious), self.noun_shares)
            _check_names("spurious", tuple(self.spurious.values()), PLACES)
        known = {
            "colours": tuple(COLOURS),
            "textures": TEXTURES,
            "sizes": SIZES,
            "places": PLACES,
            "styles": STYLES,
            "backgrounds": BACKGROUNDS,
            "scripts": SCRIPTS,
        }
        for name, names in known.items():
            _check_names(name, getattr(self, name), names)
        if len(set(self.colours)) < 2:  # else nothing could differ from the ground
            raise ValueError(f"colours is {self.colours!r}; it must name at least two colours")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @cached_property
    def pools(self) -> tuple[tuple[tuple[str, ...], list[float]], tuple[tuple[str, ...], list[float]]]:
        """Shapes, then sprites: their nouns from the most to the least frequent, with cumulative probabilities."""
        nouns = NOUNS if self.nouns is None else tuple(dict.fromkeys(self.nouns))
        if self.nouns is None:  # a fixed shuffle, so that the tail is not just the last categories of the vocabulary
            nouns = tuple(sorted(nouns, key=lambda noun: zlib.crc32(noun.encode())))
        shapes = tuple(noun for noun in nouns if CATEGORY[noun] == "shape")
        sprites = tuple(noun for noun in nouns if CATEGORY[noun] != "shape")
        return (shapes, _long_tail(len(shapes), self.imbalance)), (sprites, _long_tail(len(sprites), self.imbalance))

    @cached_property
    def noun_shares(self) -> dict[str, float]:
        """Probability of each noun as the first thing of a scene, before natural companions and repeats."""
        (shapes, shape_sums), (sprites, sprite_sums) = self.pools
        share = self.sprites if shapes and sprites else float(bool(sprites))
        found = {}
        for nouns, sums, weight in ((shapes, shape_sums, 1 - share), (sprites, sprite_sums, share)):
            for noun, low, high in zip(nouns, [0.0, *sums], sums):
                found[noun] = weight * (high - low)
        return found


def _long_tail(count: int, exponent: float) -> list[float]:
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [part / total for part in accumulate(weights)]


def _check(name: str, value: Any, fine: bool, remedy: str) -> None:
    if not fine:
        raise ValueError(f"{name} is {value!r}; it must be {remedy}")


def _check_names(name: str, values: Sequence[str], known: Any) -> None:
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        listed = ", ".join(list(known)[:12]) + (f" … ({len(known)} in all)" if len(known) > 12 else "")
        raise ValueError(f"{name} is {values!r}; {unknown or 'nothing'} is not in {listed}")
