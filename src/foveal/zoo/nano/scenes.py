"""The worlds that the nano models learn from, drawn once and kept as memory-mapped arrays in the user's cache.

Drawing a scene of 96 px costs some 4 ms, a training step of a tiny model on it hardly more. What is said of a scene is
made anew each time that it is met, from the scene's description, which costs far less.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import track

from foveal.data import world
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import BASE_NOUNS
from foveal.zoo.cache import cached_folder

HELD_OUT_SEED = 1_000_000
"""Worlds of this seed and above are for evaluation: no nano model is trained on one."""
STYLES = ("flat",) * 7 + ("cartoon", "night", "fog", "blur", "sketch")
"""Noise, inverted, grey, sepia and mosaic pictures stay unseen, for what measures a shift of style."""

CLIP_WORLD = WorldConfig(size=96, things=(1, 4), nouns=BASE_NOUNS, styles=STYLES, writing=0.1, scripts=("latin",))
"""No novel noun is ever drawn or named in it, so that zero-shot classification of novel classes means something."""
CLIP_LESSONS = replace(
    CLIP_WORLD,
    styles=("flat",) * 9 + ("sketch",) * 3 + ("cartoon", "night", "fog", "blur") * 2,
    tint=0.2,
)
"""What nano-clip is trained on: the same world with more of what is rare in it and hard to recognise."""
LLAVA_LESSONS = replace(CLIP_WORLD, imbalance=0.6, companions=0.7, repeats=0.3)
"""What nano-llava learns to read and speak in: all base nouns in a long tail among their natural companions, which
makes a model see what is usually there."""
_DRAWABLE = (
    *("circle", "square", "triangle", "star", "ring", "heart", "diamond", "cross", "crescent", "arrow"),
    *("dog", "cat", "cow", "pig", "elephant", "lion", "chicken", "duck", "penguin", "fish", "whale", "crab"),
    *("butterfly", "snail", "apple", "banana", "watermelon", "carrot", "mushroom", "pizza", "hamburger", "cake"),
    *("car", "bus", "train", "airplane", "boat", "bicycle", "rocket", "key", "guitar", "bell", "soccer ball", "hat"),
    *("shirt", "crown", "tree", "sunflower", "tulip", "chair", "clock", "cup", "umbrella", "book", "house", "tent"),
)
LLAVA_WORLD = replace(
    LLAVA_LESSONS,
    nouns=_DRAWABLE,
    styles=("flat",) * 7 + ("cartoon", "night", "fog"),
    min_visible=0.6,
    sizes=("medium", "large"),
    depth=(2.1, 3.5),
    tint=0.05,
)
"""What nano-llava learns to answer in, and is examined on: fifty-six nouns, still in a long tail, seen clearly."""
SD_WORLD = replace(
    CLIP_WORLD,
    size=64,
    things=(1, 1),
    nouns=_DRAWABLE,
    sprites=0.85,
    styles=("flat",),
    writing=0.0,
    sizes=("large",),
    textures=("plain",),
    depth=(2.3, 2.8),
    tint=0.0,
)
"""One thing of fifty-six nouns, large in the picture: as much as a tiny diffusion model learns to draw on two cores."""


@dataclass(frozen=True)
class DrawnScenes:
    """Scenes 0 … n − 1 of world ``seed`` with their pictures.

    ``boxes[i, k]`` is x0, y0, x1, y1 in pixels around what is seen of thing k of scene i; zeros where there is none.
    """

    config: WorldConfig
    seed: int
    n: int

    def __post_init__(self) -> None:
        if self.seed < 0 or self.n < 1:
            raise ValueError(f"seed={self.seed}, n={self.n}: the seed must be at least 0, and n at least 1")

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> Scene:
        return lay_out(self.config, self.seed, index)

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n h w 3"]:
        return np.load(self._folder / "images.npy", mmap_mode="r", allow_pickle=False)

    @cached_property
    def boxes(self) -> Int[np.ndarray, "n k 4"]:
        return np.load(self._folder / "boxes.npy", allow_pickle=False)

    @cached_property
    def _folder(self) -> Path:
        digest = hashlib.sha256(f"{self.config!r} {self.seed} {self.n}".encode())
        for path in sorted(Path(world.__file__).parent.glob("*.py")):  # other code may draw other pictures
            digest.update(path.read_bytes())
        return cached_folder(f"scenes-{digest.hexdigest()[:16]}", self._draw)

    def _draw(self, folder: Path) -> None:
        shape = (self.n, *self.config.shape, 3)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        boxes = np.zeros((self.n, max(1, self.config.things[1]), 4), np.int16)
        console = Console(stderr=True)
        for i in track(range(self.n), "drawing scenes", console=console, disable=not sys.stderr.isatty()):
            drawing = draw(self.scene(i), self.config.size)
            images[i] = drawing.image
            boxes[i, : len(drawing.boxes)] = np.array(drawing.boxes, np.int16).reshape(-1, 4)
        images.flush()
        np.save(folder / "boxes.npy", boxes)
