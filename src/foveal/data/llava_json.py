"""Conversations about images: LLaVA's JSON and JSONL, and the ``messages`` + ``images`` form of trl and LLaMA-Factory.

{"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", ...}]}
{"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", ...}]}
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.data.faults import Faults, RowReader, SampleError, unique_keys
from foveal.data.images import MAX_PIXELS, file_in, read_image
from foveal.data.record import Sample, Turn

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
MARK = "<image>"


class LlavaJson(RowReader):
    """The records of a file, in its order. Keys are the ``id`` entries, or the rows where there is none.

    The ``<image>`` marks of a conversation must be as many as its images. Entries of other names are in ``meta``.

    Args:
        path: ``.jsonl`` with one record a line, else a JSON list of records.
        images: the folder that image names are relative to, and that none may lead out of; the file's own if None.
        strict: raise at the first broken record when iterating.
        max_fraction: share of broken records to put up with, see `Faults`.
        max_pixels: see `read_image`.

    Raises:
        ValueError: when the file is missing, is no JSON, or holds no records.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        strict: bool = False,
        max_fraction: float = Faults.max_fraction,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        file = Path(path)
        self.images, self.max_pixels = file.parent if images is None else Path(images), max_pixels
        self.records = _records(file)
        names = [record.get("id") if isinstance(record, dict) else None for record in self.records]
        self.keys = unique_keys([str(row if name is None else name) for row, name in enumerate(names)])
        self.faults = Faults(f"LlavaJson({os.fspath(path)})", strict, max_fraction)

    def load(self, index: int) -> Sample:
        record, key = self.records[index], self.keys[index]
        if not isinstance(record, dict):
            raise SampleError(f"record {key}: {str(record)[:80]!r} is no JSON object; repair the file")
        names = _image_names(record, key)
        turns = conversation_of(record, key, len(names))
        pictures = tuple(read_image(file_in(self.images, name), max_pixels=self.max_pixels) for name in names)
        known = {"image", "images", "conversations", "messages"}
        meta = {name: value for name, value in record.items() if name not in known}
        return Sample(key, images=pictures, conversation=turns, meta=meta)


def conversation_of(record: Mapping[str, Any], key: str, images: int) -> tuple[Turn, ...]:
    """Turns of a record in either form. Content parts of type ``image`` become `MARK`.

    Raises:
        SampleError: when there are no turns, one has an unknown role or no text, or there are not ``images`` marks.
    """
    entries = record.get("conversations", record.get("messages"))
    if not isinstance(entries, list) or not entries:
        raise SampleError(f"record {key}: no list of 'conversations' or 'messages'; repair the file")
    turns = tuple(_turn(entry, key) for entry in entries)
    if (marks := _marks(turns)) != images:
        text = f"record {key}: {marks} {MARK} marks for {images} images; write one mark for each image"
        raise SampleError(text, "marks differ from images")
    return turns


def write_llava_json(samples: Iterable[Sample], path: str | os.PathLike[str], images: str | os.PathLike[str]) -> None:
    """Write conversations as LLaVA JSON, and their images as PNG files into a folder.

    ``path`` appears in one step when everything is written; until then the file of an earlier run stays.

    Args:
        samples: each with a conversation.
        path: the JSON file.
        images: folder for the images; made when it is missing.

    Raises:
        ValueError: when a sample has no conversation, or not as many `MARK` as images.
    """
    folder, final = Path(images), Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for row, sample in enumerate(samples):
        marks = _marks(sample.conversation)
        if not sample.conversation or marks != len(sample.images):
            text = f"{len(sample.conversation)} turns and {marks} {MARK} marks for {len(sample.images)} images"
            raise ValueError(f"sample {sample.key!r} has {text}: needs turns, and one mark for each image")
        names = [f"{row:08d}-{place}.png" for place in range(len(sample.images))]
        for name, image in zip(names, sample.images):
            Image.fromarray(image).save(folder / name)
        turns = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in sample.conversation]
        image_entry = {"image": names[0] if len(names) == 1 else names} if names else {}
        records.append({"id": sample.key, **image_entry, "conversations": turns})
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(records, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)


def _marks(turns: Iterable[Turn]) -> int:
    return sum(turn.text.count(MARK) for turn in turns)


def _records(path: Path) -> list[Any]:
    """All records; a line of JSONL that is no JSON stays as its text, to be a fault of its own row."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".jsonl":
            records = [_line(line) for line in content.splitlines() if line.strip()]
        else:
            records = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"cannot read {path}: {reason}; give a JSON list, or one record a line in .jsonl") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"path={os.fspath(path)!r} holds no list of records: give LLaVA JSON or JSONL")
    return records


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", errors="replace")


def _turn(entry: Any, key: str) -> Turn:
    entry = entry if isinstance(entry, dict) else {}
    role, content = entry.get("from", entry.get("role")), entry.get("value", entry.get("content"))
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        text = f"record {key}: a turn has role {role!r} and content {str(content)[:40]!r}"
        raise SampleError(f"{text}; roles are {', '.join(ROLES)}, content is text")
    return Turn(ROLES[role], content)


def _joined(parts: list[Any]) -> str | None:
    """Text of a list of content parts, or None when one is of a kind that has no text."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = MARK if kind == "image" else part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _image_names(record: dict[str, Any], key: str) -> list[str]:
    names = record.get("image", record.get("images"))
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SampleError(f"record {key}: image {str(names)[:80]!r} is no file name or list of them; repair the file")
    return names
