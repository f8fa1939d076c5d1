"""Short clips of a world, drawn once and kept as a memory-mapped array in the user's cache, as `DrawnScenes` are."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from foveal.data import world
from foveal.data.world.clips import clip
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.scene import Clip
from foveal.zoo.cache import cached_folder

LENGTHS = (2, 3, 4)
"""Numbers of frames, in turn."""


@dataclass(frozen=True)
class DrawnFilms:
    """Clips 0 … n − 1 of world ``seed`` with their frames; frames that a shorter clip does not have are black."""

    config: WorldConfig
    seed: int
    n: int

    def __post_init__(self) -> None:
        if self.seed < 0 or self.n < len(LENGTHS):
            raise ValueError(
                f"seed={self.seed}, n={self.n}: the seed must be at least 0, and n at least {len(LENGTHS)}"
            )

    def __len__(self) -> int:
        return self.n

    def frames(self, index: int) -> int:
        return LENGTHS[index % len(LENGTHS)]

    def clip(self, index: int) -> Clip:
        return clip(self.config, self.seed, index, self.frames(index))

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n f h w 3"]:
        digest = hashlib.sha256(f"films {self.config!r} {self.seed} {self.n}".encode())
        for path in (Path(__file__), *sorted(Path(world.__file__).parent.glob("*.py"))):
            digest.update(path.read_bytes())
        folder = cached_folder(f"films-{digest.hexdigest()[:16]}", self._draw)
        return np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)

    def _draw(self, folder: Path) -> None:
        shape = (self.n, max(LENGTHS), *self.config.shape, 3)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        console = Console(stderr=True)
        for i in track(range(self.n), "drawing films", console=console, disable=not sys.stderr.isatty()):
            for k, frame in enumerate(self.clip(i).frames):
                images[i, k] = draw(frame, self.config.size).image
        images.flush()
