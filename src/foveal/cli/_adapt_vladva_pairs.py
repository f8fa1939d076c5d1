"""Pictures with captions from a .jsonl file, for `foveal adapt vladva`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.data.images import ImageError

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pair:
    """A picture with what is said of it."""

    file: Path
    short: str
    long: str | None


def read_pairs(path: Path, tokens: Callable[[str], int]) -> tuple[list[Pair], int]:
    """The lines that have a short caption, and how many have none.

    Each line: "image", a path as seen from the file's folder, and "caption", a text, or "captions", a list of texts.
    The first text of fewer than 30 tokens is the short one, the first of 30 to 500 the long one.

    Raises ValueError naming the line that is not so.
    """
    from foveal.adapt.vladva import split_by_length

    found, without = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        image, texts = _checked(line, f"data={str(path)!r}, line {number}")
        short, long = split_by_length([tokens(text) for text in texts])
        brief = [text for text, chosen in zip(texts, short.tolist(), strict=True) if chosen]
        details = [text for text, chosen in zip(texts, long.tolist(), strict=True) if chosen]
        if brief:
            found.append(Pair(path.parent / image, brief[0], details[0] if details else None))
        else:
            without += 1
    return found, without


def _checked(line: str, where: str) -> tuple[str, list[str]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise ValueError(f'{where}: needs "image", the path of a picture')
    texts = row.get("captions", [row.get("caption")])
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'{where}: needs "caption", a text, or "captions", a list of texts')
    return row["image"], texts


def readable(pairs: Sequence[Pair], watch: Watch) -> tuple[list[Pair], dict[Path, ImageError]]:
    """The pairs whose pictures open, and why the others do not."""
    from foveal.cli._pictures import none_readable
    from foveal.data.images import ImageError, read_image

    kept, errors = [], {}
    for number, pair in enumerate(pairs):
        watch("opening pictures", number, len(pairs))
        try:
            read_image(pair.file)
            kept.append(pair)
        except ImageError as error:
            errors[pair.file] = error
    if not kept:
        raise none_readable(errors)
    return kept, errors


def recalls(encoder: Any, pairs: Sequence[Pair], watch: Watch, what: str) -> dict[str, float]:
    """Percentage of the pairs in which a picture finds its short caption first, and a caption its picture."""
    import torch

    from foveal.data.images import read_image
    from foveal.evaluate.tasks.embedding import cosines, ranks

    images = []
    for start in range(0, len(pairs), encoder.batch_size):
        watch(what, start, len(pairs))
        images.append(encoder.encode_image([read_image(p.file) for p in pairs[start : start + encoder.batch_size]]))
    scores = cosines(torch.cat(images), encoder.encode_text([pair.short for pair in pairs]))
    ways = {"image to text": scores, "text to image": scores.T}
    return {f"{way} R@1": 100 * float((ranks(table, range(len(pairs))) == 1).mean()) for way, table in ways.items()}
