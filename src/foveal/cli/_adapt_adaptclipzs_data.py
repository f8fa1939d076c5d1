"""What `foveal adapt adaptclipzs` reads: labelled pictures, captions of classes, and names of classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

COLUMNS = ("image", "label")


def read_captions(path: Path) -> dict[str, list[str]]:
    """{class: [captions]}; ValueError for anything else, and for fewer than two classes."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"captions={str(path)!r} is no JSON in UTF-8: {error}") from error
    if not isinstance(table, dict) or len(table) < 2:
        raise ValueError(f"captions={str(path)!r} must hold {{class: [captions]}} of at least two classes")
    for name, texts in table.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise ValueError(f"captions={str(path)!r}: class {name!r} must have a list of texts, none of them empty")
    return table


def class_list(path: Path | None, bags: Mapping[str, list[str]], captions: Path) -> list[str]:
    """The classes to choose of; ValueError for repeated ones, fewer than two, and those without captions."""
    if path is None:
        return list(bags)
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(
            f"classes={str(path)!r} has {len(set(names))} different names in {len(names)} lines: give at least two, "
            "each once"
        )
    if missing := [name for name in names if name not in bags]:
        raise ValueError(f"captions={str(captions)!r} has nothing on class {missing[0]!r} of {path}")
    return names


def labelled(path: Path, name: str, known: Mapping[str, list[str]]) -> tuple[list[Path], list[str]]:
    """Pictures and labels of a CSV file. ValueError names the line of a label that is not ``known``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name}={str(path)!r} is no CSV in UTF-8: {error}") from error
    if not rows or any(row.get(column) is None for row in rows for column in COLUMNS):
        raise ValueError(f"{name}={str(path)!r} needs a first line 'image,label' and a picture in each further one")
    for number, row in enumerate(rows, 2):
        if row["label"] not in known:
            listed = ", ".join(list(known)[:6]) + (" …" if len(known) > 6 else "")
            raise ValueError(f"{name}={str(path)!r}, line {number}: label {row['label']!r} is none of {listed}")
    return [path.parent / row["image"] for row in rows], [row["label"] for row in rows]


def few(files: list[Path], labels: list[str], shots: int | None) -> tuple[list[Path], list[str]]:
    """The first ``shots`` of each class, or all."""
    if shots is None:
        return files, labels
    from foveal.adapt.adaptclipzs import few_shot_indices

    order = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    kept = few_shot_indices([order[label] for label in labels], shots).tolist()
    return [files[i] for i in kept], [labels[i] for i in kept]
