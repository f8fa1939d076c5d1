"""Scenes out of numbers: ``scene(config, seed, index)`` is the same on every machine, in every order and process."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from foveal.data.world.config import WorldConfig
from foveal.data.world.glyphs import CJK_WORDS
from foveal.data.world.scene import Background, Scene, Thing, Writing
from foveal.data.world.sprites import fill, main_colour
from foveal.data.world.vocabulary import CATEGORY, COMPANIONS, HOMES, SPRITE, WORDS

RADIUS = {"small": 0.36, "medium": 0.56, "large": 0.84}
"""Metres, from which a thing's own may differ by a twelfth either way."""
ANGLES = (0.0, 0.0, -15.0, 15.0)
TRIES = 12
"""Places to try for a thing before it is made farther or smaller."""

T = TypeVar("T")


class Dice:
    """Uniform numbers from a generator, fetched in blocks: one number costs a tenth of a call into numpy."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left: list[float] = []

    def share(self) -> float:
        if not self._left:
            self._left = self._rng.random(48).tolist()
        return self._left.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.share()

    def choose(self, values: Sequence[T]) -> T:
        return values[int(self.share() * len(values))]

    def integer(self, below: int) -> int:
        return int(self.share() * below)


@dataclass(slots=True)
class _Placed:
    """A thing with its box (in short sides) and an upper bound of the share of it that is covered."""

    thing: Thing
    box: tuple[float, float, float, float]
    area: float
    covered: float = 0.0


def scene(config: WorldConfig, seed: int, index: int) -> Scene:
    """The scene number ``index`` of the world ``seed``.

    Raises:
        ValueError: when the seed or the index is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed is {seed} and index is {index}; neither can be negative")
    dice = Dice(np.random.default_rng((seed, index)))
    low, high = config.things
    nouns = _nouns(config, dice, low + dice.integer(high - low + 1))
    background = _background(config, dice, nouns)
    placed: list[_Placed] = []
    widest = 0.45 / math.sqrt(max(1, len(nouns)))  # so that the first things leave room for the others
    for noun in nouns:
        _place(config, dice, _thing(config, dice, noun, background), placed, widest)
    writings = _writings(config, dice, placed) if dice.share() < config.writing else ()
    things = tuple(sorted((item.thing for item in placed), key=lambda thing: thing.depth))
    style, variant = dice.choose(config.styles), dice.integer(2**31)
    aspect = config.shape[1] / config.shape[0]
    return Scene(f"world-{seed}-{index}", things, background, style, writings, variant, aspect)


def _nouns(config: WorldConfig, dice: Dice, count: int) -> list[str]:
    """The first noun is drawn freely; the others may repeat an earlier one or keep the first one company."""
    (shapes, shape_sums), (sprites, sprite_sums) = config.pools
    found: list[str] = []
    while len(found) < count:
        if found and dice.share() < config.repeats:
            found.append(dice.choose(found))
            continue
        if found and dice.share() < config.companions:
            known = [noun for noun in COMPANIONS.get(found[0], ()) if noun in config.noun_shares]
            if known:
                found.append(dice.choose(known))
                continue
        sprite = not shapes or (bool(sprites) and dice.share() < config.sprites)
        pool, sums = (sprites, sprite_sums) if sprite else (shapes, shape_sums)
        found.append(pool[min(bisect(sums, dice.share()), len(pool) - 1)])
    return found


def _background(config: WorldConfig, dice: Dice, nouns: list[str]) -> Background:
    variant = dice.integer(2**31)
    first = nouns[0] if nouns else ""
    if first in config.spurious and dice.share() < config.spurious_strength:
        return Background("place", config.spurious[first], variant)
    kind = dice.choose(config.backgrounds)
    if kind != "place":
        taken = {main_colour(noun) for noun in nouns if noun in SPRITE}
        free = [colour for colour in config.colours if colour not in taken]
        return Background(kind, dice.choose(free or config.colours), variant)
    if dice.share() < config.companions:
        homes = [place for place in HOMES.get(first, ()) if place in config.places]
        return Background("place", dice.choose(homes or config.places), variant)
    return Background("place", dice.choose(config.places), variant)


def _thing(config: WorldConfig, dice: Dice, noun: str, background: Background) -> Thing:
    """A thing at the centre: `_place` moves it to where it fits."""
    category = CATEGORY[noun]
    size = dice.choose(config.sizes)
    depth = dice.between(*config.depth)
    if config.radius is None:
        radius = RADIUS[size] * dice.between(11 / 12, 13 / 12) / depth
    else:
        smallest, largest = config.radius
        third = ("small", "medium", "large").index(size)
        radius = smallest * (largest / smallest) ** ((third + dice.share()) / 3)
    colour, texture = None, "plain"
    if category == "shape" or dice.share() < config.tint:
        colour = dice.choose(config.colours)
        while colour == background.name:  # a blue star on blue would be seen by its rim alone
            colour = dice.choose(config.colours)
    if category == "shape":
        texture = dice.choose(config.textures)
    return Thing(noun, category, size, 0.5, 0.5, radius, depth, colour, texture, dice.choose(ANGLES))


def _place(config: WorldConfig, dice: Dice, thing: Thing, placed: list[_Placed], widest: float) -> None:
    """Put the thing where it and all others stay visible enough; if there is no room, make it farther or smaller."""
    height, width = config.shape
    short = min(height, width)
    high, wide = height / short, width / short
    while True:
        turn = math.radians(thing.angle)
        half = thing.radius * (math.cos(turn) + abs(math.sin(turn)))
        area = 4 * thing.radius**2 * fill(thing.noun)
        for _ in range(TRIES if thing.radius <= widest and half <= 0.5 else 0):
            x, y = dice.between(half, wide - half), dice.between(half, high - half)
            item = _Placed(thing, (x - half, y - half, x + half, y + half), area)
            if _fits(item, placed, 1.0 - config.min_visible):
                item.thing = thing.with_(x=x / wide, y=y / high)
                placed.append(item)
                return
        thing = _lesser(config, thing)


def _fits(new: _Placed, placed: list[_Placed], allowed: float) -> bool:
    """Whether at most the allowed share of each thing is covered if the new one joins; if so, the shares are noted.

    What two things have in common is at most what their boxes have, so this holds without drawing anything.
    """
    covered, changed = 0.0, []
    for old in placed:
        shared = _overlap(new.box, old.box)
        if shared <= 0.0:
            continue
        if old.thing.depth <= new.thing.depth:
            covered += shared / new.area
            if covered > allowed:
                return False
        else:
            more = old.covered + shared / old.area
            if more > allowed:
                return False
            changed.append((old, more))
    for old, more in changed:
        old.covered = more
    new.covered = covered
    return True


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return across * down if across > 0.0 and down > 0.0 else 0.0


def _lesser(config: WorldConfig, thing: Thing) -> Thing:
    """The same thing farther away, else of the next smaller size, else (in a very full picture) just smaller."""
    if config.radius is not None:
        return thing.with_(radius=thing.radius * 0.85)
    far = config.depth[1]
    if thing.depth < 0.95 * far:
        depth = 0.25 * thing.depth + 0.75 * far
        return thing.with_(depth=depth, radius=thing.radius * thing.depth / depth)
    smaller = {"large": "medium", "medium": "small"}.get(thing.size)
    if smaller in config.sizes:
        return thing.with_(size=smaller, radius=RADIUS[smaller] / thing.depth)
    return thing.with_(radius=thing.radius * 0.85)


def _writings(config: WorldConfig, dice: Dice, placed: list[_Placed]) -> tuple[Writing, ...]:
    """One word where it leaves the things visible, or none where there is no such place."""
    height, width = config.shape
    short = min(height, width)
    high, wide = height / short, width / short
    script = dice.choose(config.scripts)
    text = dice.choose(WORDS if script == "latin" else CJK_WORDS)
    colour = dice.choose(config.colours)
    tall = dice.between(0.13, 0.2)
    for _ in range(3 * TRIES):
        half = tall * len(text) * (0.42 if script == "latin" else 0.55)
        if half < wide / 2:
            x, y = dice.between(half, wide - half), dice.between(0.6 * tall, high - 0.6 * tall)
            box = (x - half, y - 0.6 * tall, x + half, y + 0.6 * tall)
            if all(old.covered + _overlap(box, old.box) / old.area <= 1.0 - config.min_visible for old in placed):
                return (Writing(text, x / wide, y / high, tall, colour, script),)
        tall *= 0.96
    return ()
