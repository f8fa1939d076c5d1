"""Whole words as token ids: enough for the small vocabularies of the procedural world, and nothing to train."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

PAD, UNKNOWN = 0, 1


@dataclass(frozen=True)
class WordIds:
    """The words of a corpus, numbered. Id 0 pads, 1 stands for unknown words, the largest one ends a text.

    The end token has the largest id because that is where CLIP's text tower looks.
    """

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {word: 2 + i for i, word in enumerate(self.words)})

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordIds:
        """All words of the texts, sorted; ValueError when there are none."""
        words = sorted({word for text in texts for word in split(text)})
        if not words:
            raise ValueError("texts hold no words: there is nothing to number")
        return cls(tuple(words))

    def __len__(self) -> int:
        return len(self.words) + 3

    @property
    def end(self) -> int:
        """Id of the end token."""
        return len(self) - 1

    def encode(self, texts: Sequence[str], length: int | None = None) -> Int[np.ndarray, "n length"]:
        """Ids with an end token, padded on the right to ``length`` (default: the longest text).

        Raises ValueError when a text is longer than ``length`` - 1 words.
        """
        rows = [[self._ids.get(word, UNKNOWN) for word in split(text)] + [self.end] for text in texts]
        longest = max(map(len, rows), default=1)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"length={length} is too short for a text of {longest - 1} words and the end token")
        ids = np.full((len(rows), length), PAD, np.int64)
        for row, found in zip(ids, rows):
            row[: len(found)] = found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the end token, with blanks between them; padding and unknown words are left out."""
        found = []
        for index in ids:
            if index == self.end:
                break
            if index > UNKNOWN:
                found.append(self.words[int(index) - 2])
        return " ".join(found)


def split(text: str) -> list[str]:
    """Lower-case words, digits and apostrophes; punctuation separates."""
    return re.findall(r"[\w']+", text.lower())
