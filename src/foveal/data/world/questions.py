"""Questions about a scene whose answers cannot be argued with, by kind.

A thing is asked about only when the words of the question fit it alone, a relation only when it or its opposite
clearly holds. Yes/no questions come in pairs or by a fair coin, so that neither answer is the better guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from foveal.data.record import Question
from foveal.data.world.absent import Negatives
from foveal.data.world.phrases import (
    ALIKE,
    COLOURLESS,
    GROUNDS,
    NUMBERS,
    article,
    capitalised,
    pick,
    position,
    readable,
    spoken,
)
from foveal.data.world.referring import unique_phrase
from foveal.data.world.relations import COMPARISONS, OPPOSITE, RELATIONS, WORDINGS, holds
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import PLURALS

_EXISTENCE = (
    "Is there {0} in the picture?",
    "Can you see {0}?",
    "Does the picture show {0}?",
    "Is {0} visible here?",
    "Is there {0}?",
)
_COUNT = ("How many {0} are there?", "How many {0} can you see?", "How many {0} does the picture show?")
_COLOUR = ("What colour is {0}?", "Which colour does {0} have?", "{0} has which colour?")
_TEXTURE = ("What pattern does {0} have?", "Which pattern is on {0}?", "How is {0} patterned?")
_SHAPE = ("Which shape is {0}?", "What shape does {0} have?", "{0} has which shape?")
_OBJECT = ("What is {0}?", "Which object is {0}?", "{0} is what?")
_YES_NO = ("Is {0} {1} {2}?", "Would you say that {0} is {1} {2}?", "Look closely: is {0} {1} {2}?")
_WHICH = ("Which is {0}, {1} or {2}?", "What is {0}: {1} or {2}?")
_COMPARATIVE = {name: WORDINGS[name][0].removesuffix(" than") for name in COMPARISONS}
_POSITION = ("Where in the picture is {0}?", "In which part of the picture is {0}?", "Where can you find {0}?")
_PLACE = ("Where does this take place?", "What is the background?", "What surroundings are shown?")
_BACKGROUND = ("What colour is the background?", "Which colour is behind everything?")
_OCR = ("What does it say?", "What is written in the picture?", "Read the text in the picture.")

_TEXTURED = 0.1  # a radius from which a texture can be made out at 64 pixels
_ANY = Negatives()

Asker = Callable[[Scene, np.random.Generator, Negatives], list[Question]]


def ask(scene: Scene, kind: str, rng: np.random.Generator, negatives: Negatives | None = None) -> tuple[Question, ...]:
    """All questions of one kind (of `KINDS`) in the order of the things; empty when the scene allows none.

    Args:
        scene: what is asked about.
        kind: of `KINDS`.
        rng: chooses the wording and the side of yes/no questions.
        negatives: chooses the absent nouns that existence questions are about; any absent noun by default.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _ASKERS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    return tuple(_ASKERS[kind](scene, rng, negatives or _ANY))


def questions(
    scene: Scene,
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    each: int = 2,
    negatives: Negatives | None = None,
) -> tuple[Question, ...]:
    """Up to ``each`` questions of every kind (default: all `KINDS`), chosen at random.

    Existence questions come in pairs, one "yes" and one "no"; of an odd number the last one is either by a fair coin.
    """
    if each < 1:
        raise ValueError(f"each={each}: must be at least 1")
    found: list[Question] = []
    for kind in KINDS if kinds is None else kinds:
        asked = ask(scene, kind, rng, negatives)
        if kind == "existence":  # a yes, then its no
            start = int(rng.random() * (len(asked) or 1))
            found += (asked[start:] + asked[:start])[:each]
        elif len(asked) <= each:
            found += asked
        else:
            found += [asked[i] for i in sorted(rng.permutation(len(asked))[:each])]
    return tuple(found)


def _existence(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    asked = []
    for noun in dict.fromkeys(thing.noun for thing in scene.things):
        missing = negatives.draw(scene, rng)
        if missing is None:  # a "yes" without its "no" would tip the balance
            continue
        for name, answer in ((noun, "yes"), (missing, "no")):
            text = pick(rng, _EXISTENCE).format(f"{article(name)} {name}")
            asked.append(Question(text, (answer,), "existence"))
    return asked


def _count(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    counts = Counter(thing.noun for thing in scene.things)
    asked = [
        Question(pick(rng, _COUNT).format(PLURALS[noun]), (str(count), NUMBERS[count]), "count")
        for noun, count in counts.items()
        if not ALIKE[noun] & counts.keys()
    ]
    if rng.random() < 0.25 and (noun := negatives.draw(scene, rng)):
        asked.append(Question(pick(rng, _COUNT).format(PLURALS[noun]), ("0", "zero", "none"), "count"))
    return asked


def _colour(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    if scene.style in COLOURLESS:
        return []
    return [
        Question(_text(rng, _COLOUR, phrase), (thing.colour,), "colour")
        for i, thing in enumerate(scene.things)
        if thing.colour is not None and (phrase := unique_phrase(scene, i, avoid="colour"))
    ]


def _texture(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    return [
        Question(_text(rng, _TEXTURE, phrase), (thing.texture,), "texture")
        for i, thing in enumerate(scene.things)
        if thing.radius >= _TEXTURED
        and spoken(scene, thing, "texture")
        and (phrase := unique_phrase(scene, i, avoid="texture"))
    ]


def _shape(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    return _identity(scene, rng, _SHAPE, "shape")


def _object(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    return _identity(scene, rng, _OBJECT, "object")


def _identity(scene: Scene, rng: np.random.Generator, forms: Sequence[str], kind: str) -> list[Question]:
    """What is it? Asked of a thing that its attributes single out among things of every noun."""
    asked = []
    for i, thing in enumerate(scene.things):
        phrase = unique_phrase(scene, i, avoid="noun")
        if phrase and (thing.category == "shape") == (kind == "shape"):
            asked.append(Question(_text(rng, forms, phrase), (thing.noun,), kind))
    return asked


def _relation(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    return _yes_no(scene, rng, RELATIONS[:6], "relation")


def _comparison(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    asked = _yes_no(scene, rng, COMPARISONS, "comparison")
    for i, j, name, a, b in _facts(scene, COMPARISONS):
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        short = (scene.things[i].noun,) if scene.things[i].noun != scene.things[j].noun else ()
        text = pick(rng, _WHICH).format(_COMPARATIVE[name], first, second)
        asked.append(Question(text, (a, *short), "comparison"))
    return asked


def _yes_no(scene: Scene, rng: np.random.Generator, names: Sequence[str], kind: str) -> list[Question]:
    """Each fact asked once, as it is or as its opposite."""
    asked = []
    for _, _, name, a, b in _facts(scene, names):
        answer = "yes" if rng.random() < 0.5 else "no"
        wording = pick(rng, WORDINGS[name if answer == "yes" else OPPOSITE[name]])
        asked.append(Question(pick(rng, _YES_NO).format(a, wording, b), (answer,), kind))
    return asked


def _facts(scene: Scene, names: Sequence[str]) -> list[tuple[int, int, str, str, str]]:
    """Clear facts about things that their own words identify: subject, object, relation and both phrases."""
    named = [(i, phrase) for i in range(len(scene.things)) if (phrase := unique_phrase(scene, i))]
    return [
        (i, j, name, a, b)
        for i, a in named
        for j, b in named
        if i != j
        for name in names
        if holds(scene.things[i], name, scene.things[j], scene.aspect)
    ]


def _position(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    return [
        Question(_text(rng, _POSITION, phrase), (place, place.split(" the ")[1]), "position")
        for i, thing in enumerate(scene.things)
        if (place := position(thing)) and (phrase := unique_phrase(scene, i))
    ]


def _place(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    background = scene.background
    if background.kind == "place":
        return [Question(pick(rng, _PLACE), (background.name, GROUNDS[background.name]), "place")]
    if background.kind == "plain" and scene.style not in COLOURLESS:
        return [Question(pick(rng, _BACKGROUND), (background.name,), "place")]
    return []


def _ocr(scene: Scene, rng: np.random.Generator, negatives: Negatives) -> list[Question]:
    texts = readable(scene)
    if len(texts) != 1:  # which of two?
        return []
    return [Question(pick(rng, _OCR), texts, "ocr")]


def _text(rng: np.random.Generator, forms: Sequence[str], phrase: str) -> str:
    return capitalised(pick(rng, forms).format(phrase))


_ASKERS: dict[str, Asker] = {
    "existence": _existence,
    "count": _count,
    "colour": _colour,
    "texture": _texture,
    "shape": _shape,
    "object": _object,
    "relation": _relation,
    "comparison": _comparison,
    "position": _position,
    "place": _place,
    "ocr": _ocr,
}
KINDS = tuple(_ASKERS)
