"""Large pictures with a few small things in them, and the question which colour lies on the square of another one.

A square has a circle of half its size on it. At the coarse levels of a picture's pyramid both are one dot: the colour
of the square says where to look, and only the pixels of a fine level show that of the circle.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foveal.data.word_ids import WordIds
from foveal.data.world import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple", "black", "white")
SQUARES = 5
QUESTION = "which colour lies on the square of colour {}"
WORDS = WordIds.of([QUESTION, *COLOURS])
START, IMAGE = WORDS.end, len(WORDS)
"""Token ids of the beginning of a prompt, and of an image token."""
TILE, BASE, PATCH = 32, 64, 8
"""Pixels of a tile, of the first level of a pyramid and of a patch, a side."""


@dataclass(frozen=True)
class Picture:
    """A drawn scene; ``instance`` numbers the squares from 1 on, then the circles on them in the same order."""

    image: UInt8[np.ndarray, "s s 3"]
    instance: UInt8[np.ndarray, "s s"]
    squares: tuple[str, ...]
    """Colours, all different."""
    circles: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    """x0, y0, x1, y1 in pixels around each square."""

    def centre(self, square: int = 0) -> tuple[float, float]:
        """x and y as shares of the picture."""
        x0, y0, x1, y1 = self.boxes[square]
        return (x0 + x1) / 2 / len(self.image), (y0 + y1) / 2 / len(self.image)

    def crop(self, square: int = 0) -> UInt8[np.ndarray, "t t 3"]:
        """The size of a tile around a square, moved inside where it would leave the picture."""
        size = len(self.image)
        left, top = (min(max(round(at * size) - TILE // 2, 0), size - TILE) for at in self.centre(square))
        return self.image[top : top + TILE, left : left + TILE]


def pictures(seed: int, n: int, size: int, pixels: tuple[float, float]) -> Iterator[Picture]:
    """``n`` scenes of ``size`` pixels a side. A square is ``pixels`` (smallest, largest) wide."""
    config = WorldConfig(
        size=size,
        things=(SQUARES, SQUARES),
        nouns=("square",),
        colours=COLOURS,
        textures=("plain",),
        radius=(pixels[0] / 2 / size, pixels[1] / 2 / size),
        min_visible=1.0,
    )
    for number in range(n):
        scene, rng = lay_out(config, seed, number), np.random.default_rng((seed, number, 1))
        free = [colour for colour in COLOURS if colour != scene.background.name]
        outer = rng.permutation(free).tolist()[:SQUARES]
        inner = [rng.choice([colour for colour in free if colour != own]).item() for own in outer]
        squares = [thing.with_(colour=colour) for thing, colour in zip(scene.things, outer)]
        circles = [
            thing.with_(noun="circle", colour=colour, radius=thing.radius / 2, depth=thing.depth - 0.01)
            for thing, colour in zip(squares, inner)
        ]
        drawing = draw(scene.with_(things=(*squares, *circles)), size)
        yield Picture(drawing.image, drawing.instance, tuple(outer), tuple(inner), drawing.boxes[:SQUARES])


def normalised(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Pixel values from −1 to 1."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def words(text: str) -> list[int]:
    """Token ids."""
    return WORDS.encode([text])[0, :-1].tolist()


def prompt(colour: str, image_tokens: int = 1) -> Int[Tensor, "1 l"]:
    """A picture and the question about its square of this colour."""
    return torch.tensor([[START, *[IMAGE] * image_tokens, *words(QUESTION.format(colour))]])
