"""Facts about two things of a scene that are true in the picture and leave no room for argument.

A fact needs a margin, so that nobody looking at the picture would hesitate; where the margin is missed neither the
relation nor its opposite holds, and nothing is said or asked. "Bigger" is about the picture (a near mouse may look
bigger than a far elephant), but is only stated when the real sizes do not say the contrary. "In front of" needs an
overlap in the picture, "nearer than" does not; the overlap is judged as in a square picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from foveal.data.world.scene import Scene, Thing
from foveal.data.world.sprites import fill

OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
    "bigger than": "smaller than",
    "smaller than": "bigger than",
    "nearer than": "farther than",
    "farther than": "nearer than",
}
RELATIONS = tuple(OPPOSITE)
WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher up than"),
    "below": ("below", "lower down than"),
    "in front of": ("in front of", "partly covering"),
    "behind": ("behind", "partly hidden by"),
    "bigger than": ("bigger than", "larger than"),
    "smaller than": ("smaller than",),
    "nearer than": ("nearer than", "closer to the viewer than"),
    "farther than": ("farther away than",),
}
"""Relation -> ways to say it after "is"."""
SPATIAL = RELATIONS[:4]
COMPARISONS = RELATIONS[6:]

_MARGIN = 0.06  # of the picture, on top of half the larger radius
_CONE = 0.5  # a thing far above and a little to the left is not "left of"
_OVERLAP = 0.75  # of the sum of the radii of the discs: closer than that, things of any outline cover each other
_LAYER = 0.3  # metres
_DEPTH = 1.0
_RATIO = 1.5  # of the drawn radii
_DISC_RATIO = 1.2
_SIZES = {"small": 0, "medium": 1, "large": 2}


@dataclass(frozen=True, slots=True)
class Relation:
    """``things[subject]`` is ``name`` (of `RELATIONS`) ``things[object]``."""

    subject: int
    name: str
    object: int


def holds(a: Thing, name: str, b: Thing, aspect: float = 1.0) -> bool:
    """Is "a ``name`` b" clearly true in a picture of that ``Scene.aspect``? ValueError: unknown relation."""
    if name not in _TESTS and name in OPPOSITE:
        a, name, b = b, OPPOSITE[name], a
    if name in _TESTS:
        return _TESTS[name](_in_short_sides(a, aspect), _in_short_sides(b, aspect))
    raise ValueError(f"name={name!r} is no relation: choose one of {', '.join(RELATIONS)}")


def relations(scene: Scene, names: tuple[str, ...] = RELATIONS) -> tuple[Relation, ...]:
    """Every clear fact of the given kinds, ordered by subject, object, kind."""
    things = scene.things
    return tuple(
        Relation(i, name, j)
        for i, a in enumerate(things)
        for j, b in enumerate(things)
        if i != j
        for name in names
        if holds(a, name, b, scene.aspect)
    )


def _in_short_sides(thing: Thing, aspect: float) -> Thing:
    """Its centre in the unit of its radius, so that distances are the same in every direction."""
    return thing if aspect == 1.0 else thing.with_(x=thing.x * max(aspect, 1.0), y=thing.y * max(1 / aspect, 1.0))


def _left(a: Thing, b: Thing) -> bool:
    return _apart(b.x - a.x, b.y - a.y, a, b)


def _above(a: Thing, b: Thing) -> bool:
    return _apart(b.y - a.y, b.x - a.x, a, b)


def _apart(along: float, across: float, a: Thing, b: Thing) -> bool:
    return along >= _MARGIN + 0.5 * max(a.radius, b.radius) and along >= _CONE * abs(across)


def _in_front(near: Thing, far: Thing) -> bool:
    reach = _OVERLAP * (_disc(near) + _disc(far))
    return far.depth - near.depth >= _LAYER and (near.x - far.x) ** 2 + (near.y - far.y) ** 2 <= reach * reach


def _nearer(near: Thing, far: Thing) -> bool:
    return far.depth - near.depth >= _DEPTH


def _smaller(little: Thing, big: Thing) -> bool:
    """In extent and in area; a long thin thing beside a small round one is no case for a comparison."""
    return (
        big.radius >= _RATIO * little.radius
        and _disc(big) >= _DISC_RATIO * _disc(little)
        and _SIZES[big.size] >= _SIZES[little.size]
    )


def _disc(thing: Thing) -> float:
    """Radius of the disc that covers as much of the picture as the thing does."""
    return thing.radius * math.sqrt(4 * fill(thing.noun) / math.pi)


_TESTS = {"left of": _left, "above": _above, "in front of": _in_front, "nearer than": _nearer, "smaller than": _smaller}
