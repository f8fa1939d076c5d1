"""Pictures with one label each, from a folder of classes or a CSV, and a part of each class that is held out."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Watch = Callable[[str, int, int], None]
LISTED = 8
"""Classes that a message names."""


@dataclass(frozen=True)
class Labelled:
    """Readable pictures with their classes.

    Attributes:
        paths, labels: one of each for every picture; labels are places in ``classes``.
        classes: sorted.
        skipped: why pictures were left out -> how many.
    """

    paths: list[Path]
    labels: list[int]
    classes: list[str]
    skipped: dict[str, int]


def read_labelled(data: Path, watch: Watch) -> Labelled:
    """The pictures of ``data``, each of which is opened once to see whether it can be.

    Raises ValueError for a source that is neither, malformed lines, too many broken pictures, fewer than two classes,
    and a class with fewer than two pictures.
    """
    from foveal.data.faults import Faults, SampleError
    from foveal.data.images import read_image

    named = _of_folder(data) if data.is_dir() else _of_csv(data)
    faults = Faults(str(data))
    found: list[tuple[Path, str]] = []
    for number, (path, label) in enumerate(named):
        watch("looking at the pictures", number, len(named))
        try:
            if not label:
                raise SampleError(f"{path} lies beside the class folders, not in one", "no class")
            read_image(path)
        except SampleError as error:
            faults.record(str(path), error)
        else:
            faults.sound()
            found.append((path, label))
    faults.finish()
    classes = sorted({label for _, label in found})
    if len(classes) < 2:
        raise ValueError(f"data={str(data)!r} has {len(classes)} class(es): give at least two ({', '.join(classes)})")
    counts = {name: sum(label == name for _, label in found) for name in classes}
    if few := [name for name in classes if counts[name] < 2]:
        listed = ", ".join(few[:LISTED])
        raise ValueError(f"data={str(data)!r}: one readable picture only of {listed}; a class needs two, one to test")
    place = {name: number for number, name in enumerate(classes)}
    return Labelled([path for path, _ in found], [place[label] for _, label in found], classes, dict(faults.counts))


def _of_folder(root: Path) -> list[tuple[Path, str]]:
    from foveal.data.folder import ImageFolder

    folder = ImageFolder(root)
    return [(path, key.split("/")[0] if "/" in key else "") for path, key in zip(folder.paths, folder.keys)]


def _of_csv(path: Path) -> list[tuple[Path, str]]:
    if path.suffix != ".csv":
        raise ValueError(f"data={str(path)!r}: give a folder with one sub-folder a class, or a .csv of image,label")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not rows.fieldnames or not {"image", "label"} <= set(rows.fieldnames):
            raise ValueError(f"{path}: the first line must name the columns image and label")
        found: dict[Path, str] = {}
        for row in rows:
            image, label = (row["image"] or "").strip(), (row["label"] or "").strip()
            if not image or not label:
                raise ValueError(f"{path}, line {rows.line_num}: needs an image and a label")
            place = path.parent / image
            if found.setdefault(place, label) != label:
                raise ValueError(f"{path}, line {rows.line_num}: {image} is {found[place]} above and {label} here")
    return list(found.items())


def split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out: ``share`` of every class, at least one of it and never all."""
    if not 0 < share < 1:
        raise ValueError(f"held_out={share}: must be a share between 0 and 1")
    train, held = [], []
    for name in sorted(set(labels)):
        rows = [row for row, label in enumerate(labels) if label == name]
        random.Random(f"{seed} {name}").shuffle(rows)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held += rows[:count]
        train += rows[count:]
    return sorted(train), sorted(held)


class Collate:
    """(path, label) pairs -> pixels as the model reads them, and labels."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, samples: Sequence[tuple[Path, int]]) -> dict[str, Any]:
        import torch
        from PIL import Image

        from foveal.data.images import read_image

        pictures = [Image.fromarray(read_image(path)) for path, _ in samples]
        pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixels": pixels, "labels": torch.tensor([label for _, label in samples])}
