"""An index of a folder of pictures, to be searched by text.

What the classifier says of a picture is kept in the user's cache under the hash of the file's bytes, so a second search
reads no picture, and a copied, renamed or moved one is known already.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foveal.data.images import ImageError, image_files, read_image
from foveal.data.transforms import resize_square
from foveal.demo.zero_shot import ZeroShot
from foveal.zoo.cache import cache_folder
from foveal.zoo.efficientnet_lite0 import SIZE

VERSION = "efficientnet-lite0-logits-1"  # to be changed with anything that changes the numbers
BATCH = 16


@dataclass(frozen=True)
class PictureIndex:
    """The readable pictures of a folder."""

    paths: list[Path]
    logits: Float[Tensor, "n 1000"]
    skipped: dict[Path, ImageError]
    """The files that could not be read."""
    fresh: int
    """How many were not in the cache."""

    def search(self, zero_shot: ZeroShot, text: str, k: int = 5) -> list[tuple[Path, float]]:
        """The k pictures that fit the text best, with `ZeroShot.matches`, best first."""
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        if not self.paths:
            return []
        scores = zero_shot.matches(self.logits, [text])[:, 0]
        best = scores.argsort(descending=True, stable=True)[:k]
        return [(self.paths[i], float(scores[i])) for i in best.tolist()]


def index_folder(
    folder: str | os.PathLike[str], zero_shot: ZeroShot, progress: Callable[[str, int, int], None] | None = None
) -> PictureIndex:
    """Looks at every picture in and below ``folder`` that the cache does not know. Unreadable files are skipped.

    Raises ValueError when ``folder`` is missing or is no folder.
    """
    files = image_files(folder)
    known: dict[Path, Float[np.ndarray, "1000"]] = {}
    waiting: list[tuple[Path, str, np.ndarray]] = []
    skipped: dict[Path, ImageError] = {}
    fresh = 0
    for done, path in enumerate(files):
        if progress:
            progress("looking at pictures", done, len(files))
        digest = _digest(path)
        stored = _stored(digest)
        if stored is not None:
            known[path] = stored
            continue
        try:  # shrunk at once: a batch of large photos would fill the memory
            waiting.append((path, digest, resize_square(read_image(path), SIZE)))
        except ImageError as error:
            skipped[path] = error
            continue
        fresh += 1
        if len(waiting) == BATCH:
            known |= _look(waiting, zero_shot)
            waiting = []
    if waiting:
        known |= _look(waiting, zero_shot)
    paths = [path for path in files if path in known]
    logits = np.stack([known[path] for path in paths]) if paths else np.empty((0, 1000), np.float32)
    return PictureIndex(paths, torch.from_numpy(logits), skipped, fresh)


def _look(waiting: list[tuple[Path, str, np.ndarray]], zero_shot: ZeroShot) -> dict[Path, Float[np.ndarray, "1000"]]:
    logits = zero_shot.logits([image for _, _, image in waiting]).numpy()
    for (_, digest, _), row in zip(waiting, logits, strict=True):
        _store(digest, row)
    return {path: row for (path, _, _), row in zip(waiting, logits, strict=True)}


def _digest(path: Path) -> str:
    """SHA-256 of the file; "" for what cannot be read, of which `read_image` will tell the reason."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _cache_file(digest: str) -> Path:
    return cache_folder() / VERSION / digest[:2] / f"{digest}.npy"


def _stored(digest: str) -> Float[np.ndarray, "1000"] | None:
    """The cached row; None when there is none, or it is damaged."""
    if not digest:
        return None
    try:
        row = np.load(_cache_file(digest), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return row if row.shape == (1000,) and row.dtype == np.float32 and np.isfinite(row).all() else None


def _store(digest: str, row: Float[np.ndarray, "1000"]) -> None:
    """By one rename, so that nobody reads half a file. A cache that cannot be written costs time, nothing else."""
    target = _cache_file(digest)
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, row, allow_pickle=False)
        Path(aside).replace(target)
    except OSError:
        if aside:
            Path(aside).unlink(missing_ok=True)
