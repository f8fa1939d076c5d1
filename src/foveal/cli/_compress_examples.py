"""The user's own examples for `foveal compress`: a picture, a question, and the answer that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveal.data.faults import SampleError
from foveal.data.llava_json import MARK, LlavaJson
from foveal.data.record import Sample

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Example:
    """One question. Its pictures are read anew whenever the model is asked, so that they need no memory meanwhile."""

    key: str
    row: int
    """In the reader that it comes from."""
    pictures: int
    prompt: str
    answers: tuple[str, ...]
    """The reference, the usual wording first."""
    by_people: bool
    """Answers of several people who need not agree, as in VQAv2; otherwise each of them is right."""


class Asked(LlavaJson):
    """Conversations as `LlavaJson` takes them, of which the first question and answer count, and plain lines:

    {"image": "a.jpg", "question": "What is in the bowl?", "answer": "apples"} or ["apples", "red apples"]
    {"image": ["a.jpg", "b.jpg"], "question": "Are these alike?", "answers": ["no", "no", "not quite"]}

    Without an ``id``, records are called by their line. ``n`` of them are drawn with ``seed``; None takes all.
    """

    def __init__(self, path: Path, images: Path | None = None, n: int | None = None, seed: int = 0) -> None:
        if images is not None and not images.is_dir():
            raise ValueError(f"images={str(images)!r} is no folder: give the one that image names are relative to")
        super().__init__(path, images)
        named = [isinstance(record, dict) and record.get("id") is not None for record in self.records]
        places = _places(path, len(self.records))
        keys = [key if own else place for key, own, place in zip(self.keys, named, places, strict=True)]
        rows = range(len(keys)) if n is None else sorted(shuffled(len(keys), seed)[:n])
        self.records, self.keys = [_conversation(self.records[row]) for row in rows], [keys[row] for row in rows]

    def load(self, index: int) -> Sample:
        sample, key = super().load(index), self.keys[index]
        turns = sample.conversation
        if not sample.images:
            raise SampleError(f"record {key}: no image is named; give 'image'", "no image")
        if [turn.role for turn in turns[:2]] != ["user", "assistant"] or not turns[1].text.strip():
            raise SampleError(f"record {key}: begins with no question and its answer", "no question with answer")
        if turns[0].text.count(MARK) != len(sample.images):
            raise SampleError(f"record {key}: an image comes after the first question", "image in a later turn")
        return sample

    def examples(self, report: Report) -> list[Example]:
        """All sound ones, every picture read once; what is broken is logged in one line, see `Faults`."""
        report("reading pictures", 0, len(self))
        found = []
        for row, sample in self._sound():
            found.append(_example(self.keys[row], row, sample))
            report("reading pictures", row + 1, len(self))
        return found

    def pictures(self, example: Example) -> Sequence[Any]:
        """The pictures of one example."""
        return self.load(example.row).images


def shuffled(n: int, seed: int) -> list[int]:
    """0 … n − 1 in the order of that seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def _example(key: str, row: int, sample: Sample) -> Example:
    question, answer = sample.conversation[:2]
    prompt, written, by_people = question.text.replace(MARK, "").strip(), (answer.text,), False
    for name in ("answer", "answers"):
        several = sample.meta.get(name)
        if isinstance(several, list) and several and all(isinstance(one, str) for one in several):
            written, by_people = tuple(several), name == "answers"
    return Example(key, row, len(sample.images), prompt, written, by_people)


def _conversation(record: Any) -> Any:
    """A plain line in the form of a conversation; anything else as it is."""
    if not isinstance(record, dict) or "question" not in record or {"conversations", "messages"} & set(record):
        return record
    question, answer = record["question"], record.get("answer", record.get("answers"))
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    images = record.get("image", record.get("images"))
    if isinstance(question, str) and MARK not in question:
        question = MARK * (len(images) if isinstance(images, list) else images is not None) + question
    return {**record, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _places(path: Path, n: int) -> list[str]:
    """What an editor shows in front of each record of a JSONL file; else its number, from 1."""
    if path.suffix.lower() != ".jsonl":
        return [f"record {number}" for number in range(1, n + 1)]
    lines = path.read_bytes().splitlines()
    return [f"line {number}" for number, line in enumerate(lines, 1) if line.strip()]
