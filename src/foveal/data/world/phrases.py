"""The words for one thing, for where it is, and for what is around it: what captions and questions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from foveal.data.world.scene import Scene, Thing
from foveal.data.world.vocabulary import NOUNS, PLURALS

_T = TypeVar("_T")

DETAILS = ("size", "colour", "texture")
"""Attributes in the order in which English puts them before the noun."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

POSITIONS = (
    *("in the upper left", "at the top", "in the upper right"),
    *("on the left", "in the middle", "on the right"),
    *("in the lower left", "at the bottom", "in the lower right"),
)
"""The cells of a 3 × 3 grid, row by row."""

GROUNDS = {
    "grass": "on grass",
    "sand": "on sand",
    "water": "on water",
    "snow": "in the snow",
    "street": "on a street",
    "sky": "in the sky",
    "wood": "on wood",
    "brick": "in front of a brick wall",
}
"""Place -> where the things are."""

LOOKS = {
    "flat": ("", ""),
    "sketch": ("a sketch", "as a sketch"),
    "cartoon": ("a cartoon", "as a cartoon"),
    "night": ("a night scene", "at night"),
    "fog": ("a foggy scene", "in fog"),
    "blur": ("a blurry picture", "out of focus"),
    "noise": ("a grainy picture", "with grainy noise"),
    "inverted": ("a negative", "in inverted colours"),
    "grey": ("a black and white picture", "in black and white"),
    "sepia": ("an old brown picture", "in faded brown"),
    "mosaic": ("a mosaic", "as a mosaic"),
}
"""Style -> the name of such a picture, and the same said afterwards."""

COLOURLESS = frozenset({"sketch", "inverted", "grey", "sepia"})
"""Styles in which the colour of a thing cannot be seen: it is neither spoken of nor asked for."""

_ALIKE = {
    "circle": "ring, soccer ball, basketball, tennis ball, clock, cookie, tomato, coconut, peach, kiwi, donut, bagel",
    "ring": "donut, bagel",
    "diamond": "square, kite",
    "triangle": "pizza, tent",
    "crescent": "banana",
    "cross": "church, ambulance",
    "tree": "palm, leaf",
    "sunflower": "tulip",
    "shoe": "boot",
    "coat": "shirt",
    "ambulance": "car, truck, bus",
    "church": "house, castle, tower",
    "castle": "house, tower",
    "bagel": "donut",
    "hamburger": "sandwich",
    "bucket": "drum, cup",
}
_PAIRS = {(a, b) for a, line in _ALIKE.items() for b in line.split(", ")}
ALIKE = MappingProxyType(
    {noun: frozenset(b if a == noun else a for a, b in _PAIRS if noun in (a, b)) for noun in NOUNS}
)
"""Noun -> nouns that some people would use for the same thing (a palm is a tree): no question depends on them."""

INDISTINCT = frozenset({"blur", "mosaic"})
"""Styles in which textures and writing cannot be made out."""

_CONSONANT = ("uni", "use", "eu", "ukulele", "one")  # vowels that are spoken like "you" and "won"
_SILENT = ("hour", "honest")
_GRID_MARGIN = 0.03  # a centre this near to a line of the grid is in no cell


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of the options; ten times as fast as ``rng.choice``, and captions are made by the thousand."""
    return options[int(rng.random() * len(options))]


def article(phrase: str) -> str:
    """Article before the sound that the phrase begins with: "an orange star", "a unicorn"."""
    if phrase.startswith(_SILENT):
        return "an"
    return "an" if phrase[0].lower() in "aeiou" and not phrase.startswith(_CONSONANT) else "a"


def spoken(scene: Scene, thing: Thing, part: str) -> str | None:
    """The word for an attribute (of `DETAILS`) that can be seen and is worth saying, else None."""
    if part == "size":
        return None if thing.size == "medium" else thing.size
    if part == "colour":
        return None if scene.style in COLOURLESS else thing.colour
    return None if thing.texture == "plain" or scene.style in INDISTINCT else thing.texture


def attribute_words(scene: Scene, thing: Thing, detail: Sequence[str]) -> list[str]:
    """Its adjectives in English order."""
    return [word for part in DETAILS if part in detail and (word := spoken(scene, thing, part))]


def noun_phrase(scene: Scene, thing: Thing, detail: Sequence[str] = DETAILS, count: int = 1) -> str:
    """ "small red striped star", without article; in the plural when ``count`` is not 1."""
    return " ".join([*attribute_words(scene, thing, detail), thing.noun if count == 1 else PLURALS[thing.noun]])


def counted(scene: Scene, thing: Thing, detail: Sequence[str] = DETAILS, count: int = 1) -> str:
    """ "a small red star", "two dogs"."""
    phrase = noun_phrase(scene, thing, detail, count)
    if count != 1:
        return f"{NUMBERS[count]} {phrase}"
    return f"{article(phrase)} {phrase}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalised(text: str) -> str:
    """With a capital letter in front and the others as they are."""
    return f"{text[0].upper()}{text[1:]}"


def position(thing: Thing) -> str | None:
    """Its cell of `POSITIONS`, or None when it lies across a line of the grid."""
    margin = _GRID_MARGIN + 0.25 * thing.radius  # what is hidden moves the middle of what is seen
    column, row = _cell(thing.x, margin), _cell(thing.y, margin)
    return None if column is None or row is None else POSITIONS[3 * row + column]


def ground(scene: Scene) -> str:
    """ "on grass", "on a blue background"."""
    background = scene.background
    if background.kind == "place":
        return GROUNDS[background.name]
    kind = "gradient background" if background.kind == "gradient" else "background"
    if scene.style in COLOURLESS:
        return f"on a {'plain ' if background.kind == 'plain' else ''}{kind}"
    return f"on {article(background.name)} {background.name} {kind}"


def readable(scene: Scene) -> tuple[str, ...]:
    """What is written in the picture and can be read."""
    return () if scene.style in INDISTINCT else tuple(writing.text for writing in scene.writings)


def _cell(value: float, margin: float) -> int | None:
    nearest = min(abs(value - 1 / 3), abs(value - 2 / 3))
    return None if nearest < margin else int(value > 1 / 3) + int(value > 2 / 3)
