"""What the tasks for vision–language models share: asking, reading yes and no, and comparing short answers.

Answers are compared as the official VQA evaluation does (Goyal et al., CVPR 2017, arXiv 1612.00837): lower case, no
punctuation, no articles, number words as figures. Apostrophes are dropped rather than put where they belong, so that
"dont" and "don't" are one word without a table of contractions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.data.images import file_in, read_image
from foveal.data.world.phrases import NUMBERS
from foveal.evaluate.base import Item, Json, Pictures
from foveal.evaluate.models.recorded import RecordedAnswers

_FIGURES = {"none": "0", "zero": "0", **{word: str(i) for i, word in enumerate(NUMBERS[:11]) if i}}
_ARTICLES = frozenset({"a", "an", "the"})
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_POINT = re.compile(r"\.(?!\d)")
_SIGNS = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@`,?!:*“”]")
_QUOTES = re.compile(r"['’‘]")

Ask = Callable[[Any, Sequence[Item]], list[Json]]


def asker(max_new_tokens: int, partial: bool = False) -> Ask:
    """Asks the first text of each item about its pictures; the output is ``{"answer": text}``.

    Recorded answers are looked up by the item's ``id``, or else its key. One that is missing is an error, or under
    ``partial`` the answer None.
    """

    def ask(model: Any, items: Sequence[Item]) -> list[Json]:
        if isinstance(model, RecordedAnswers):
            return [{"answer": _recorded(model, item, partial)} for item in items]
        requests = [(item.pictures() if item.pictures else [], item.texts[0]) for item in items]
        return [{"answer": text} for text in model.answer(requests, max_new_tokens)]

    return ask


def image_file(folder: Path | None, name: str) -> Pictures:
    """What reads one picture of the user's folder, when it is called."""

    def read() -> list[Any]:
        if folder is None:
            raise ValueError(f"images is not given: the task needs --images DIR with {name} in it")
        return [read_image(file_in(folder, name))]

    return read


def _recorded(model: RecordedAnswers, item: Item, partial: bool) -> str | None:
    identity = item.truth.get("id", item.key)
    found = model.find(identity)
    if found is None and not partial:
        raise ValueError(f"the recorded answers hold none for id {identity!r}; give all, or fewer questions (--n)")
    return found


def normalised(answer: str) -> str:
    """The answer in the form in which answers are compared."""
    text = _QUOTES.sub("", answer.replace("\n", " ").replace("\t", " ").lower())
    text = _POINT.sub(" ", _SIGNS.sub(" ", _BETWEEN_DIGITS.sub("", text)))
    return " ".join(_FIGURES.get(word, word) for word in text.split() if word not in _ARTICLES)


def yes_or_no(answer: str) -> str:
    """ "no" when the first sentence holds "no" or "not", else "yes": the rule of POPE's official evaluation.

    A model that says neither is taken to say yes; see `is_either`.
    """
    return "no" if {"no", "not"} & set(_first_sentence(answer)) else "yes"


def is_either(answer: str) -> bool:
    """Whether the first sentence holds yes, no or not at all."""
    return bool({"yes", "no", "not"} & set(_first_sentence(answer)))


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Agreement with the answers of several people: the mean over them of min(1, a third of the others who agree).

    With ten people that is VQA's official accuracy. A single answer is matched exactly.
    """
    said = normalised(answer)
    agree = [said == normalised(other) for other in answers]
    if len(agree) == 1:
        return float(agree[0])
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(agree)


def _first_sentence(answer: str) -> list[str]:
    return re.findall(r"[a-z']+", answer.split(".")[0].lower())
