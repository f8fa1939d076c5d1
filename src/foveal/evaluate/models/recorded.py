"""Answers that somebody has already: a result file in the official format of POPE, VQA or COCO captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foveal.evaluate.base import Kind

_IDS = ("question_id", "image_id", "key")
_TEXTS = ("answer", "caption", "said", "text")


class RecordedAnswers:
    """Answers by the id of their question or picture; scored like those of a model.

    Args:
        path: a JSON list, or one JSON object a line. An object has its id in ``question_id``, ``image_id`` or ``key``
            (default: its number, from 1) and its text in ``answer``, ``caption``, ``said`` or ``text``.

    Raises:
        ValueError: the file cannot be read, holds something else, or two answers to one question.
    """

    kind: Kind = "vision-language"
    batch_size = 32

    def __init__(self, path: Path) -> None:
        self._answers: dict[str, str] = {}
        for number, record in enumerate(json_records(path), 1):
            text = next((record[name] for name in _TEXTS if isinstance(record.get(name), str)), None)
            if text is None:
                raise ValueError(f"{path}: entry {number} has none of {', '.join(_TEXTS)}")
            identity = str(next((record[name] for name in _IDS if name in record), number))
            if identity in self._answers:
                raise ValueError(f"{path}: two answers for id {identity}; keep one of them")
            self._answers[identity] = text

    def find(self, identity: str) -> str | None:
        """The answer with that id, or None when there is none."""
        return self._answers.get(identity)


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, or of a file with one object a line; ValueError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}; give a JSON file") from error
    if text.lstrip().startswith("["):
        found = _parsed(text, str(path))
    else:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [_parsed(line, f"{path}, line {i}") for i, line in lines]
    if not found:
        raise ValueError(f"{path} holds no entry")
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}: entry {number} is {str(record)[:60]!r}, no JSON object")
        yield record


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON: {error}") from error
