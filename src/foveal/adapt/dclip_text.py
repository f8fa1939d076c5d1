"""Descriptors of classes as texts: asked for, read out of an answer, said to a text encoder, and read from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.llm import LanguageModel, Turn

_SENTENCES = (("which is ", ("a",)), ("which ", ("has", "often", "typically", "may", "can")), ("which is ", ("used",)))
_ITEM = re.compile(r"\s*(?:[-*•]|[0-9]+[.)])(.*)")
_EXAMPLES = (
    (
        "heron",
        "long, thin legs",
        "grey and white feathers",
        "a neck bent like an S",
        "a pointed yellow beak",
        "near water",
    ),
    ("toaster", "a box of metal or plastic", "two long slots on top", "a lever at the side", "a dial", "a power cord"),
)
"""What the language model is shown: an animal and an appliance."""


def make_descriptor_sentence(d: str) -> str:
    """ "which has webbed feet": the descriptor as the end of a sentence about its class."""
    return next((f"{words}{d}" for words, starts in _SENTENCES if d.startswith(starts)), f"which has {d}")


def descriptor_prompts(
    class_name: str,
    descriptors: Sequence[str],
    *,
    prefix: str = "",
    between: str = ", ",
    suffix: str = "",
    include_class_name: bool = True,
) -> list[str]:
    """One text for each descriptor; underscores of the name are blanks in them.

    Args:
        include_class_name: False leaves the sentences alone, without the name and what is around it.

    Returns:
        For no descriptors at all, the bare name between ``prefix`` and ``suffix``.

    Raises:
        ValueError: neither descriptors nor a name, or one text in the place of a list.
    """
    check_texts("descriptors", descriptors)
    if include_class_name:
        name = f"{prefix}{spoken(class_name)}"
        return [f"{name}{between}{make_descriptor_sentence(d)}{suffix}" for d in descriptors] or [f"{name}{suffix}"]
    if not descriptors:
        raise ValueError(f"descriptors of {class_name!r} are empty and include_class_name=False: nothing would be said")
    return [make_descriptor_sentence(d) for d in descriptors]


def parse_descriptors(text: str) -> list[str]:
    """The items of a list with dashes, stars, bullets or numbers; other lines, empty items and repeats are dropped."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if (match := _ITEM.match(line)) and (item := match[1].strip()):
            found.setdefault(item.casefold(), item)
    return list(found.values())


def descriptor_messages(class_name: str) -> list[Turn]:
    """The conversation that asks for a class's visual features after two worked examples."""
    turns: list[Turn] = []
    for name, *features in _EXAMPLES:
        turns.append({"role": "user", "content": _question(name)})
        turns.append({"role": "assistant", "content": "\n".join(f"- {feature}" for feature in features)})
    return [*turns, {"role": "user", "content": _question(spoken(class_name))}]


def generate_descriptors(
    class_names: Sequence[str], lm: LanguageModel, *, max_new_tokens: int = 100
) -> dict[str, list[str]]:
    """What the language model lists for each class, asked once at temperature 0; empty where it lists nothing.

    Raises:
        ValueError: no class, or one that is named twice.
    """
    check_texts("class_names", class_names)
    if not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names={list(class_names)!r}: give at least one name, and each once")
    return {
        name: parse_descriptors(lm.complete(descriptor_messages(name), max_new_tokens=max_new_tokens, temperature=0.0))
        for name in class_names
    }


def read_descriptors(path: str | PathLike[str]) -> dict[str, list[str]]:
    """Class -> descriptors of a JSON file; ValueError naming the file when it is none."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); write {{class: [descriptors]}}") from error
    fine = (
        isinstance(table, dict)
        and table
        and all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in table.values())
    )
    if not fine:
        raise ValueError(f"{path}: must hold {{class: [descriptors]}} with at least one class, and texts in the lists")
    return table


def spoken(class_name: str) -> str:
    """The name with blanks for underscores."""
    return class_name.replace("_", " ")


def check_texts(name: str, texts: Sequence[str]) -> None:
    """ValueError unless it is a list of texts."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={texts!r}: must be a list of texts")


def _question(name: str) -> str:
    return f"Which visual features tell {spoken(name)} in a photo? Answer with a list, one short feature a line."
