"""What the tests of `foveal adapt` share: calling it, and small labelled pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveal.cli import main
from foveal.data import world


def call(capsys: Any, method: str, *arguments: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``foveal adapt METHOD ...``."""
    try:
        main(["adapt", method, *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def coloured(colour: Iterable[int], side: int, rng: np.random.Generator) -> Image.Image:
    """One colour with noise."""
    noise = rng.integers(-20, 20, (side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def draw_things(folder: Path, files: Iterable[str], nouns: tuple[str, ...], **look: Any) -> dict[str, str]:
    """A picture of one of the things in each file; file -> thing."""
    names = list(files)
    shown = world.classify(3, len(names), nouns, world.WorldConfig(size=96, tint=0.0, **look))
    for name, image in zip(names, shown.images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return {name: nouns[label] for name, label in zip(names, shown.labels, strict=True)}


def csv_of(labels: dict[str, str]) -> str:
    return "\n".join(["image,label", *(f"{file},{label}" for file, label in labels.items())]) + "\n"
