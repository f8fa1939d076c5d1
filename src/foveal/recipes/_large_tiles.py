"""Pictures cut into the tiles of their pyramid, with what lies on each patch of each tile."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.compress.lrs import build_pyramid, pyramid_plan
from foveal.lab import Run
from foveal.recipes._large import BASE, COLOURS, PATCH, SQUARES, TILE, normalised, pictures

SMALL, LARGE = TILE, BASE
"""Pixels of pictures to learn from: one crowded tile, or a thumbnail and four tiles."""
PIXELS = (4.0, 16.0)
"""Of their squares: dots as well as squares at full resolution."""
PATCHES = TILE // PATCH
"""Of a tile, a side."""


class Drawn(NamedTuple):
    """Pictures as k tiles, the thumbnail first, and what lies on them."""

    tiles: Float[Tensor, "n k 3 t t"]
    squares: Int[Tensor, "n k patches"]
    """Number of the square that has most of a patch, with its circle; from 1 on, 0 where there is none."""
    circles: Int[Tensor, "n k patches"]
    """Of the circle that has most of it."""
    outer: Int[Tensor, "n squares"]
    """Colours of the squares."""
    inner: Int[Tensor, "n squares"]
    """Colours of the circles on them."""

    def named(self) -> list[Int[Tensor, "n k patches"]]:
        """Colour of square and of circle on each patch: 1 + its number, 0 where there is none."""
        return [
            (1 + colours[:, None].expand(-1, numbers.shape[1], -1).gather(2, numbers.clamp(min=1) - 1)) * (numbers > 0)
            for colours, numbers in ((self.outer, self.squares), (self.inner, self.circles))
        ]


def drawn(run: Run, n: int, size: int) -> Drawn:
    """``n`` pictures of `SMALL` or `LARGE` pixels."""
    plan, rows = pyramid_plan(size, size, TILE, BASE)[: 1 if size == TILE else None], []
    for picture in pictures(1000 + run.seed, run.size(n), size, PIXELS):
        instance = torch.from_numpy(picture.instance).float()[None, None]
        tiles = torch.cat([level.flatten(0, 1) for level in build_pyramid(normalised(picture.image), plan, TILE)])
        # nearest pixels: a blend of the numbers of two things would be a third thing
        sampled = [F.interpolate(instance, level.resized_hw, mode="nearest-exact")[0, 0] for level in plan]
        patches = torch.cat([_patches(level) for level in sampled])
        counts = torch.stack([(patches == number).sum(-1) for number in range(1, 2 * SQUARES + 1)], -1)
        circles = counts[..., SQUARES:]
        squares = counts[..., :SQUARES] + circles
        numbers = [torch.where(some.any(-1), 1 + some.argmax(-1), 0) for some in (squares, circles)]
        colours = [
            torch.tensor([COLOURS.index(name) for name in names]) for names in (picture.squares, picture.circles)
        ]
        rows.append((tiles, *numbers, *colours))
    return Drawn(*map(torch.stack, zip(*rows)))


def _patches(level: Float[Tensor, "h w"]) -> Float[Tensor, "tiles patches pixels"]:
    """The pixels of each patch of each tile."""
    cut = level.unflatten(1, (-1, PATCHES, PATCH)).unflatten(0, (-1, PATCHES, PATCH))
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).flatten(0, 1)
