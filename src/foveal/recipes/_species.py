"""Species of one kind of creature: fine-grained classes with invented names, of which much can be said.

A species has a body (shape, pattern, colour) and a crest of another colour, and lives mostly in one place, sometimes in
another. No attribute is its own: what tells it from others is how they are combined. Base and novel species share all
attributes. Descriptions use words that nano-clip has never read beside a picture ("chequered", "desert").
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from foveal.adapt.adaptclipzs import class_captions
from foveal.data.world.draw import draw
from foveal.data.world.scene import Background, Scene, Thing
from foveal.lab import Run

SIZE, SPECIES = 96, 40
SHAPES = ("circle", "square", "triangle", "star", "heart")
PATTERNS = {"striped": "stripes", "dotted": "spots", "checked": "a chequered skin", "zigzag": "jagged lines"}
COLOURS = ("red", "yellow", "green", "blue", "purple")
CRESTS = ("orange", "cyan", "pink", "black", "white")
PLACES = {
    "grass": "meadows",
    "sand": "deserts",
    "water": "lakes",
    "snow": "arctic lands",
    "street": "towns",
    "sky": "high air",
    "wood": "timber",
    "brick": "old walls",
}
SHARES = (0.55, 0.3)
"""How often a species is in its first and in its second place; else it is anywhere."""
_SYLLABLES = ("ba", "di", "fo", "gu", "ke", "lo", "mi", "nu", "pa", "ri", "so", "ta", "vu", "we", "zo")


class Species(NamedTuple):
    """One class."""

    name: str
    shape: str
    pattern: str
    colour: str
    crest: str
    homes: tuple[str, str]


def species(run: Run) -> list[Species]:
    """`SPECIES` different ones, the first half of which are the base classes."""
    rng = run.rng("species")
    found: dict[tuple[str, ...], Species] = {}
    while len(found) < SPECIES:
        shape, pattern, colour, crest = (str(rng.choice(v)) for v in (SHAPES, tuple(PATTERNS), COLOURS, CRESTS))
        first, second = (str(place) for place in rng.choice(tuple(PLACES), 2, replace=False))
        name = "".join(rng.choice(_SYLLABLES, 3))
        if name not in {other.name for other in found.values()}:
            looks = (shape, pattern, colour, crest)
            found.setdefault(looks, Species(name, *looks, (first, second)))
    return list(found.values())


def captions(one: Species, sources: tuple[str, ...]) -> list[str]:
    """What is said of a species: "looks", "places", both, or, with no source, its name alone."""
    skin = PATTERNS[one.pattern]
    looks = [
        f"creature with {skin} on a {one.colour} body",
        f"creature with a {one.shape} as its body and {skin}",
        f"creature with a {one.crest} crest above a {one.colour} {one.shape}",
        f"creature with {skin} and a {one.crest} crest",
    ]
    first, second = (PLACES[place] for place in one.homes)
    places = [f"creature which lives in {first}", f"creature which is at home in {first} and seen in {second}"]
    visual, location = looks if "looks" in sources else [], places if "places" in sources else []
    return class_captions(one.name, visual=visual, location=location)


def pictures(
    run: Run, classes: list[Species], n: int, purpose: str
) -> tuple[list[UInt8[np.ndarray, "s s 3"]], list[int]]:
    """``n`` pictures and the places of their species in ``classes``, by turns."""
    rng, count = run.rng(purpose), run.size(n)
    labels = [i % len(classes) for i in range(count)]
    return [_picture(classes[label], rng) for label in labels], labels


def _picture(one: Species, rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
    share = rng.random()
    place = (
        one.homes[0] if share < SHARES[0] else one.homes[1] if share < sum(SHARES) else str(rng.choice(tuple(PLACES)))
    )
    x, y = rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.65)
    radius, angle = rng.uniform(0.2, 0.27), float(rng.uniform(-15, 15))
    body = Thing(one.shape, "shape", "large", x, y, radius, 4.0, one.colour, one.pattern, angle)
    crest = Thing("crescent", "shape", "small", x + rng.uniform(-0.05, 0.05), y - 1.15 * radius, 0.1, 3.0, one.crest)
    ground = Background("place", place, int(rng.integers(2**31)))
    return draw(Scene("species", (crest, body), ground), SIZE).image
