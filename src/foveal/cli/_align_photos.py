"""The user's photos for `foveal align`: which can be read, which are held out, and pairs about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from foveal.align.batches import Pair
from foveal.cli._align_folder import Watch
from foveal.data.images import ImageError, read_image
from foveal.data.record import Sample

FEWEST = 4


@dataclass(frozen=True)
class Photos:
    """Readable photos by their name below the folder.

    Attributes:
        root: the folder.
        names: in their order.
        captions: name -> first line of the text file beside it, where there is one.
        skipped: reason -> number.
    """

    root: Path
    names: list[str]
    captions: dict[str, str]
    skipped: dict[str, int]

    def read(self, name: str) -> np.ndarray:
        return read_image(self.root / name)


def find_photos(root: Path, n: int | None, watch: Watch) -> Photos:
    """Every image of the folder is opened once; of more than n the first are taken.

    ValueError: no folder, or fewer than `FEWEST` readable photos.
    """
    from foveal.data.folder import ImageFolder

    folder = ImageFolder(root)
    names, captions, skipped = list[str](), dict[str, str](), dict[str, int]()
    for place in range(len(folder)):
        if n is not None and len(names) == n:
            break
        watch("reading pictures", place, len(folder))
        try:
            sample: Sample = folder.load(place)
        except ImageError as error:
            skipped[error.reason] = skipped.get(error.reason, 0) + 1
            continue
        name = folder.paths[place].relative_to(root).as_posix()
        names.append(name)
        if sample.captions:
            captions[name] = sample.captions[0]
    if len(names) < FEWEST:
        why = ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
        raise ValueError(
            f"images={str(root)!r} holds {len(names)} readable pictures{f' ({why})' if why else ''}: give at least "
            f"{FEWEST}, better some hundreds"
        )
    return Photos(root, names, captions, skipped)


@dataclass(frozen=True)
class Row:
    """A photo with two answers to a prompt."""

    name: str
    prompt: str
    chosen: str
    rejected: str


class Pairs(Sequence[Pair]):
    """Rows with their pictures, which are read when they are asked for."""

    def __init__(self, photos: Photos, rows: Sequence[Row]) -> None:
        self.photos, self.rows = photos, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self.rows))[index]]
        row = self.rows[index]
        return Pair(self.photos.read(row.name), row.prompt, row.chosen, row.rejected)


def split(rows: Sequence[Any], held_out: float, seed: int) -> tuple[list[Any], list[Any]]:
    """To train on, and held out: at least one each. ValueError: fewer than two rows, or a share outside (0, 1)."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: must be a share between 0 and 1")
    if len(rows) < 2:
        raise ValueError(f"only {len(rows)} preference pairs could be built: one is trained on and one held out")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(len(rows) - 1, max(1, round(held_out * len(rows))))
    held = set(order[:count])
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]
