"""Questions with lettered options, as multiple-choice benchmarks put them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from foveal.data.record import Question
from foveal.data.world.glyphs import CJK_WORDS
from foveal.data.world.phrases import ALIKE, POSITIONS
from foveal.data.world.vocabulary import COLOURS, PLACES, SHAPES, SPRITE, TEXTURES, WORDS

LETTERS = "ABCDEFGH"


class MultipleChoice(NamedTuple):
    """``text`` ends with one line "(A) red" for each option; ``letter`` is the right one."""

    text: str
    letter: str


def multiple_choice(question: Question, rng: np.random.Generator, options: int = 4) -> MultipleChoice | None:
    """The question with up to ``options`` answers to choose from, one of them right, in random order.

    None where wrong answers cannot be told without the scene ("which is bigger, ...?").

    Raises:
        ValueError: options is not 2 to 8.
    """
    if not 2 <= options <= len(LETTERS):
        raise ValueError(f"options={options}: must be 2 to {len(LETTERS)}")
    right = question.answers[0]
    wrong = [other for other in _alternatives(question.kind, right) if other not in question.answers]
    if not wrong:
        return None
    chosen = [right, *(wrong[i] for i in rng.permutation(len(wrong))[: options - 1])]
    order = rng.permutation(len(chosen))
    lines = [f"({letter}) {chosen[i]}" for letter, i in zip(LETTERS, order)]
    return MultipleChoice("\n".join([question.text, *lines]), LETTERS[order.tolist().index(0)])


def _alternatives(kind: str, right: str) -> Iterable[str]:
    """Answers of the same sort that cannot be taken for the right one."""
    if right in ("yes", "no"):
        return ("yes", "no")
    if kind == "count":
        return [str(count) for count in range(max(0, int(right) - 3), int(right) + 4)]
    if kind == "object":
        return [noun for noun in SPRITE if noun not in ALIKE[right]]
    if kind == "shape":
        return [noun for noun in SHAPES if noun not in ALIKE[right]]
    if kind == "place":
        return PLACES if right in PLACES else COLOURS
    if kind == "ocr":
        return WORDS if right.isascii() else CJK_WORDS
    return {"colour": COLOURS, "texture": TEXTURES[1:], "position": POSITIONS}.get(kind, ())
