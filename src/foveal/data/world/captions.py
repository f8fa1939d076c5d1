"""What can be said of a scene: one line, a paragraph of which every sentence knows its things, or one thing alone.

Every caption is true of the picture and is built from varied forms, so that a model cannot get by with learning one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from foveal.data.world.phrases import (
    DETAILS,
    LOOKS,
    NUMBERS,
    article,
    capitalised,
    counted,
    ground,
    listed,
    noun_phrase,
    pick,
    position,
    readable,
)
from foveal.data.world.referring import unique_phrase
from foveal.data.world.relations import RELATIONS, WORDINGS, holds
from foveal.data.world.scene import Scene, Thing

TEMPLATES = (
    "{}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a scene with {}",
    "an illustration of {}",
    "a picture that shows {}",
    "here you can see {}",
)
"""Forms of the short captions, and so the prompts for zero-shot classes; the blank takes "a dog" (see `prompts`)."""

_DETAIL_CHOICES: tuple[tuple[str, ...], ...] = (DETAILS, ("size", "colour"), ("colour", "texture"), ("colour",), ())
SPOKEN_GROUPS = 3
"""A short caption names this many groups of alike things; one that lists eight is not short."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and the indices of the things it is about; none when it is about the background or the style."""

    text: str
    things: tuple[int, ...] = ()


def prompts(noun: str, templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """The class name in every template, with its article: "a picture of an apple"."""
    return tuple(template.format(f"{article(noun)} {noun}") for template in templates)


def attributes(thing: Thing) -> dict[str, str]:
    """All that is true of it by name; ``colour`` is missing for a sprite in its own colours."""
    values = {"noun": thing.noun, "category": thing.category, "size": thing.size, "texture": thing.texture}
    return values if thing.colour is None else {**values, "colour": thing.colour}


def short_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One line such as "a picture of a small red striped star and two dogs on grass".

    Names the nearest things with an amount of detail that varies; of more than three groups of alike things the rest
    is counted ("and two other things").
    """
    detail = pick(rng, _DETAIL_CHOICES)
    said = _things(scene, detail)
    if rng.random() < 0.75:
        said = f"{said} {ground(scene)}"
    words = [text for text in readable(scene) if text.isascii()]  # a caption stays English
    if words and rng.random() < 0.5:
        said = f'{said} with the word "{words[0]}"'
    name, suffix = LOOKS[scene.style]
    if name and rng.random() < 0.75:
        return f"{name} of {said}" if rng.random() < 0.5 else f"{said}, {suffix}"
    # the bare form is what people write most
    return said if rng.random() < 0.3 else pick(rng, TEMPLATES).format(said)


def paraphrases(scene: Scene, rng: np.random.Generator, n: int) -> tuple[str, ...]:
    """``n`` different short captions of one scene; ValueError: n is negative or more than the forms can give."""
    if n < 0:
        raise ValueError(f"n={n}: must not be negative")
    found: dict[str, None] = {}
    for _ in range(50 * n):
        if len(found) == n:
            break
        found.setdefault(short_caption(scene, rng))
    if len(found) < n:
        raise ValueError(f"n={n}: this scene has only {len(found)} short captions")
    return tuple(found)


def long_caption(scene: Scene, rng: np.random.Generator) -> tuple[Sentence, ...]:
    """A description in sentences: every thing once, then relations, writing, background and style."""
    order = [int(i) for i in rng.permutation(len(scene.things))]
    sentences = [_appearance(scene, i, rng) for i in order]
    sentences += _relations(scene, order, rng)
    sentences += [Sentence(_sentence(pick(rng, _WRITTEN).format(text))) for text in readable(scene)]
    sentences.append(Sentence(_sentence(pick(rng, _GROUND).format(ground(scene)))))
    if LOOKS[scene.style][0]:
        sentences.append(Sentence(_sentence(pick(rng, _STYLE).format(LOOKS[scene.style][0]))))
    return tuple(sentences)


def region_caption(scene: Scene, index: int, rng: np.random.Generator) -> str:
    """A phrase for one thing, as a grounding model hears it: "a small red star", or with its place in the picture."""
    phrase = counted(scene, scene.things[index], pick(rng, _DETAIL_CHOICES[:3]))
    place = position(scene.things[index])
    return f"{phrase} {place}" if place and rng.random() < 0.3 else phrase


def _things(scene: Scene, detail: Sequence[str]) -> str:
    """All things in one phrase; those that the chosen words do not tell apart are counted."""
    groups = Counter(noun_phrase(scene, thing, detail) for thing in scene.things)
    first = {noun_phrase(scene, thing, detail): thing for thing in reversed(scene.things)}
    names = list(groups)[:SPOKEN_GROUPS]
    parts = [counted(scene, first[name], detail, groups[name]) for name in names]
    others = len(scene.things) - sum(groups[name] for name in names)
    if others:
        parts.append("another thing" if others == 1 else f"{NUMBERS[others]} other things")
    return listed(parts) if parts else "an empty scene"


_PLACED = ("there is {0} {1}", "{0} is {1}", "{1}, there is {0}", "{1} you can see {0}", "we see {0} {1}")
_UNPLACED = ("there is {0}", "we see {0}", "the picture shows {0}", "one can see {0}")
_GROUND = ("everything is {0}", "the scene is set {0}", "all of it is {0}")
_STYLE = ("this is {0}", "it looks like {0}", "what you see is {0}")
_WRITTEN = ('it says "{0}"', 'the text reads "{0}"', 'the word "{0}" is written in the picture')


def _sentence(text: str) -> str:
    return f"{capitalised(text)}."


def _appearance(scene: Scene, index: int, rng: np.random.Generator) -> Sentence:
    thing = scene.things[index]
    place = position(thing)
    forms = _UNPLACED if place is None else _PLACED
    return Sentence(_sentence(pick(rng, forms).format(counted(scene, thing), place)), (index,))


def _relations(scene: Scene, order: Sequence[int], rng: np.random.Generator) -> list[Sentence]:
    """At most two facts about things that their own words identify."""
    found: list[Sentence] = []
    for i, j in pairwise(order):
        a, b = unique_phrase(scene, i), unique_phrase(scene, j)
        names = [name for name in RELATIONS if holds(scene.things[i], name, scene.things[j], scene.aspect)]
        if a and b and names and len(found) < 2:
            wording = pick(rng, WORDINGS[pick(rng, names)])
            found.append(Sentence(_sentence(f"{a} is {wording} {b}"), (i, j)))
    return found
