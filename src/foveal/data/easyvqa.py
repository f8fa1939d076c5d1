"""easy-VQA (V. Zhou, MIT): 5,000 pictures of one coloured shape with 48,000 questions, from the wheel `easy-vqa`.

Its authors' split. Most yes/no questions of the source have the answer that no such shape is there; balance them where
that matters.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from foveal.data.bundled import LazySamples, package_folder
from foveal.data.images import read_image
from foveal.data.record import Question, Sample

SPLITS = ("train", "test")


def samples(split: str = "train") -> LazySamples:
    """One sample per picture (64 x 64) with all its questions; pictures are read on access.

    The ``kind`` of a question is ``"existence"`` (answers yes and no), ``"colour"`` or ``"shape"``.

    Raises:
        ValueError: when ``split`` is neither ``"train"`` (4,000 pictures) nor ``"test"`` (1,000).
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be 'train' or 'test'")
    return _samples(split)


@cache
def _samples(split: str) -> LazySamples:
    questions: dict[int, list[Question]] = {}
    text = (_folder() / split / "questions.json").read_text(encoding="utf-8")
    for asked, answer, image in json.loads(text):
        questions.setdefault(image, []).append(Question(asked, (answer,), _kind(asked, answer)))
    return LazySamples(tuple((split, image, tuple(questions[image])) for image in sorted(questions)), _sample)


def _sample(item: tuple[str, int, tuple[Question, ...]]) -> Sample:
    split, image, questions = item
    path = _folder() / split / "images" / f"{image}.png"
    meta = {"licence": "MIT", "source": f"easy-vqa: {split}/images/{image}.png"}
    return Sample(key=f"easy-vqa/{split}/{image}", images=(read_image(path),), questions=questions, meta=meta)


def _kind(asked: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "existence"
    return "colour" if "what color" in asked or "the color of" in asked else "shape"


def _folder() -> Path:
    return package_folder("easy_vqa", "easy-vqa") / "data"
