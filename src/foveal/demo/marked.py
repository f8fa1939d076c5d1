"""Which words of a description name a thing of the scene, and which name one that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from foveal.data.world.phrases import ALIKE
from foveal.evaluate.tasks.mentions import Lexicon, world_lexicon


class Piece(NamedTuple):
    """Some of a description; ``kind`` is "there", "invented", or "" for what names nothing."""

    text: str
    kind: str


def marked(text: str, objects: Sequence[str]) -> list[Piece]:
    """The whole text in pieces. What some people would call one of the ``objects`` is there, too."""
    allowed, at = _allowed(objects), 0
    pieces: list[Piece] = []
    for start, end, name in _lexicon().located(text):
        pieces += [Piece(text[at:start], ""), Piece(text[start:end], "there" if name in allowed else "invented")]
        at = end
    pieces.append(Piece(text[at:], ""))
    return [piece for piece in pieces if piece.text]


def invented(text: str, objects: Sequence[str]) -> list[str]:
    """The names of what is not there, in order, each once."""
    allowed = _allowed(objects)
    return [name for name in dict.fromkeys(_lexicon().mentions(text)) if name not in allowed]


def _allowed(objects: Sequence[str]) -> set[str]:
    return {*objects, *(name for noun in objects for name in ALIKE[noun])}


@cache
def _lexicon() -> Lexicon:
    return world_lexicon()
