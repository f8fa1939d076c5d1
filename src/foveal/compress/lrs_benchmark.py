"""LRS-VQA, the benchmark of `lrs`: 7,333 questions about satellite images of up to 27,000 pixels a side.

Reads the authors' file (JSON lines) and scores answers as they do: a word must be the true one, or a synonym of it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LrsVqaItem:
    """One question. Boxes and sizes are of the object asked about, None where the file has none."""

    question_id: str
    image: str
    """Path of the picture as the file gives it."""
    category: str
    text: str
    """The question with its instruction."""
    ground_truth: str
    image_size: tuple[int, int]
    """Width and height in pixels."""
    hbox: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels."""
    rbox: tuple[float, ...] | None = None
    """Four corners (x, y) of the turned box."""
    abs_size: str | float | None = None
    size_bin: str | float | None = None

    @property
    def subset(self) -> str:
        """The set that the image is from: FAIR, GLH-Bridge or STAR."""
        return self.question_id.split("_")[0]


STRINGS = ("question_id", "image", "category", "text", "ground_truth")
LENGTHS = {"image_size": 2, "hbox": 4, "rbox": 8}


def load_lrs_vqa(path: str | os.PathLike[str]) -> list[LrsVqaItem]:
    """The questions of a JSON-lines file, in its order.

    Raises ValueError naming the line for broken JSON, missing or malformed fields and repeated ids, and for a file
    that is missing or has no question.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path={os.fspath(path)!r} cannot be read: {error}; give the file of questions") from error
    items: dict[str, LrsVqaItem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{os.fspath(path)}, line {number}"
        item = _item(line, where)
        if item.question_id in items:
            raise ValueError(f"{where}: question_id {item.question_id!r} was there before; ids must be unique")
        items[item.question_id] = item
    if not items:
        raise ValueError(f"path={os.fspath(path)!r} holds no question; give the file of questions, JSON lines")
    return list(items.values())


def _item(line: str, where: str) -> LrsVqaItem:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}; repair the line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no JSON object; repair the line")
    missing = [name for name in (*STRINGS, "image_size") if record.get(name) is None]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; every question needs these fields")
    fields: dict[str, Any] = {}
    for name in (*STRINGS, "abs_size", "size_bin"):
        value = record.get(name)
        if not (isinstance(value, str | None) or _is_number(value)):
            raise ValueError(f"{where}: {name}={value!r} must be text or a number")
        fields[name] = str(value) if name in STRINGS else value
    for name, length in LENGTHS.items():
        value = record.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != length or not all(_is_number(part) for part in value):
            raise ValueError(f"{where}: {name}={value!r} must be a list of {length} numbers")
        fields[name] = tuple(value)
    return LrsVqaItem(**fields)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def score_lrs_vqa(
    items: Iterable[LrsVqaItem],
    predictions: Mapping[str, str],
    synonyms: Callable[[str, str], bool] | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracies from 0 to 1, for each subset by itself.

    An answer is right if it equals the true one, without outer blanks and case, or ``synonyms(truth, answer)``.

    Args:
        predictions: question_id to the answer.
        synonyms: takes both words stripped and lower-cased. The authors take WordNet's: any two senses with a path
            similarity above 0.8. None: nothing but the word itself is right.

    Returns:
        subset to ``{"categories": {category: accuracy}, "overall": over all questions, "average": mean of the
        categories, "n": questions}``. The paper reports ``average``.

    Raises ValueError for questions without a prediction.
    """
    items = list(items)
    if missing := [item.question_id for item in items if predictions.get(item.question_id) is None]:
        raise ValueError(f"predictions lacks {len(missing)} of {len(items)} questions, such as {missing[0]!r}")
    marks: dict[str, dict[str, list[bool]]] = {}
    for item in items:
        truth, answer = (text.strip().lower() for text in (item.ground_truth, predictions[item.question_id]))
        right = truth == answer or (synonyms is not None and bool(synonyms(truth, answer)))
        marks.setdefault(item.subset, {}).setdefault(item.category, []).append(right)
    return {subset: _summary(marked) for subset, marked in marks.items()}


def _summary(marked: Mapping[str, list[bool]]) -> dict[str, Any]:
    categories = {category: sum(right) / len(right) for category, right in sorted(marked.items())}
    everything = [mark for right in marked.values() for mark in right]
    return {
        "categories": categories,
        "overall": sum(everything) / len(everything),
        "average": sum(categories.values()) / len(categories),
        "n": len(everything),
    }
