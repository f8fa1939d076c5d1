"""The dynamic image pyramid of `lrs`: the levels of an image from a thumbnail to its own resolution, cut into tiles.

A list of tensors holds every level of an image in memory. `LazyPyramid` stands in its place for a picture on disk: it
reads the windows under the tiles that are asked for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foveal.data.windows import Box, PictureFile

WINDOW_PIXELS = 1_000_000
"""Pixels of a picture on disk that are held at once, 3 MB; at least two of its rows."""


@dataclass(frozen=True)
class PyramidLevel:
    """One level. The picture lies in the top left corner of its tiles."""

    ratio: float
    """Size over that of the picture, before it is enlarged to fill its tiles."""
    resized_hw: tuple[int, int]
    """Pixels of the resized picture."""
    grid_hw: tuple[int, int]
    """Tiles."""
    padded_hw: tuple[int, int]
    """Pixels of all tiles."""


def pyramid_plan(height: int, width: int, tile: int = 336, base_long_side: int = 1008) -> list[PyramidLevel]:
    """The levels of a picture of ``height`` × ``width`` pixels: a thumbnail of one tile, then from coarse to fine.

    The finest level has the ratio 1, each coarser one half of that, as long as the long side keeps
    ``base_long_side`` pixels; the coarsest has exactly these (ratio 1 for a smaller picture).

    Raises ValueError for a number below 1.
    """
    for name, value in {"height": height, "width": width, "tile": tile, "base_long_side": base_long_side}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1 pixel")
    base = min(base_long_side / max(height, width), 1.0)
    ratios = [1.0]
    while ratios[-1] / 2 >= base:
        ratios.append(ratios[-1] / 2)
    if ratios[-1] > base:
        ratios.append(base)
    ratios.append(min(tile / height, tile / width))
    return [_level(height, width, ratio, tile) for ratio in reversed(ratios)]


def _level(height: int, width: int, ratio: float, tile: int) -> PyramidLevel:
    """Resize, then enlarge until one side fills its tiles."""
    h, w = max(1, round(height * ratio)), max(1, round(width * ratio))
    fill = min(math.ceil(h / tile) * tile / h, math.ceil(w / tile) * tile / w)
    h, w = round(h * fill), round(w * fill)
    rows, columns = math.ceil(h / tile), math.ceil(w / tile)
    return PyramidLevel(ratio, (h, w), (rows, columns), (rows * tile, columns * tile))


def build_pyramid(
    image: Float[Tensor, "3 h w"], plan: Sequence[PyramidLevel], tile: int = 336
) -> list[Float[Tensor, "gh gw 3 t t"]]:
    """All tiles of all levels of a normalised image, zeros where a level does not fill them.

    Bilinear without antialiasing, as in the paper: coarse levels are samples of the picture, not averages.
    Raises ValueError for another shape, an image that is not of floats, or a plan of other tiles.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"image {tuple(image.shape)} of {image.dtype} must be (3, H, W) and normalised floats")
    levels = []
    for level in plan:
        _check_tile(level, tile)
        (h, w), (rows, columns) = level.resized_hw, level.grid_hw
        canvas = image.new_zeros(3, *level.padded_hw)
        canvas[:, :h, :w] = F.interpolate(image[None], (h, w), mode="bilinear")[0]
        tiles = canvas.view(3, rows, tile, columns, tile).permute(1, 3, 0, 2, 4)
        levels.append(tiles.contiguous())
    return levels


def _check_tile(level: PyramidLevel, tile: int) -> None:
    if level.padded_hw != (level.grid_hw[0] * tile, level.grid_hw[1] * tile):
        raise ValueError(
            f"tile={tile} differs from the plan's, of {level.grid_hw} tiles in {level.padded_hw} pixels; make the plan "
            "with the same tile"
        )


class LazyPyramid:
    """The pyramid of a picture on disk, for `coarse_to_fine` in place of the list of `build_pyramid`.

    ``pyramid[level][rows, columns]`` reads those tiles, in one pass over the file from top to bottom, and holds no more
    of the picture than they and one window of `WINDOW_PIXELS`.

    Args:
        picture: what to read.
        mean, std: three numbers each, of pixel values from 0 to 1, as in the model's image processor.
        tile, base_long_side: see `pyramid_plan`.

    Attributes:
        plan: the levels.

    Raises ValueError for ``mean`` and ``std`` that are not three numbers, ``std`` above 0.
    """

    def __init__(
        self,
        picture: PictureFile,
        mean: Sequence[float],
        std: Sequence[float],
        tile: int = 336,
        base_long_side: int = 1008,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={mean} and std={std} must be three numbers each, std above 0: see image_mean")
        self.picture, self.tile, self.base_long_side = picture, tile, base_long_side
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.plan = pyramid_plan(picture.height, picture.width, tile, base_long_side)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, level: int) -> "LazyLevel":
        return LazyLevel(self, self.plan[level])


class LazyLevel:
    """The tiles of one level, read when they are asked for."""

    def __init__(self, pyramid: LazyPyramid, level: PyramidLevel) -> None:
        self.pyramid, self.level = pyramid, level

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(rows of tiles, columns of tiles, 3, tile, tile)."""
        return (*self.level.grid_hw, 3, self.pyramid.tile, self.pyramid.tile)

    def __getitem__(self, where: tuple[Int[Tensor, " k"], Int[Tensor, " k"]]) -> Float[Tensor, "k 3 t t"]:
        """The tiles at (rows, columns), as a tensor of all tiles would give them."""
        places = list(zip(*(part.tolist() for part in where), strict=True))
        (rows, columns), tile = self.level.grid_hw, self.pyramid.tile
        for place in places:
            if not (0 <= place[0] < rows and 0 <= place[1] < columns):
                raise ValueError(f"tile {place} is outside of {rows} × {columns} tiles")
        tiles = torch.zeros(len(places), 3, tile, tile)
        pieces = [piece for row in sorted({row for row, _ in places}) for piece in self._pieces(row, places)]
        windows = self.pyramid.picture.windows(box for _, box in pieces)
        for (lines, box), window in zip(pieces, windows, strict=True):
            for number, (row, column) in enumerate(places):
                if lines.start // tile == row:
                    part = self._resample(window, box, lines, self._columns(column))
                    top = lines.start - row * tile
                    tiles[number, :, top : top + len(lines), : part.shape[2]] = part
        return tiles

    def _columns(self, column: int) -> range:
        """Pixels of a column of tiles, without the padding."""
        return range(column * self.pyramid.tile, min((column + 1) * self.pyramid.tile, self.level.resized_hw[1]))

    def _pieces(self, row: int, places: list[tuple[int, int]]) -> Iterator[tuple[range, Box]]:
        """The lines of a row of tiles in portions, each with the window under all its tiles, which fits in memory."""
        (height, width), tile = self.level.resized_hw, self.pyramid.tile
        picture = self.pyramid.picture
        wanted = [column for other, column in places if other == row]
        left, right, _ = _blend(picture.width, width, range(min(wanted) * tile, self._columns(max(wanted)).stop))
        source_rows = max(2, WINDOW_PIXELS // picture.width)
        step = max(1, int((source_rows - 2) * height / picture.height))
        stop = min((row + 1) * tile, height)
        for start in range(row * tile, stop, step):
            lines = range(start, min(start + step, stop))
            top, bottom, _ = _blend(picture.height, height, lines)
            yield lines, (int(top[0]), int(bottom[-1]) + 1, int(left[0]), int(right[-1]) + 1)

    def _resample(
        self, window: UInt8[np.ndarray, "h w 3"], box: Box, lines: range, columns: range
    ) -> Float[Tensor, "3 h w"]:
        """Bilinear values, normalised, at ``lines`` × ``columns`` of the level, from the bytes under ``box``."""
        (height, width), picture = self.level.resized_hw, self.pyramid.picture
        above, below, down = _blend(picture.height, height, lines)
        before, after, across = _blend(picture.width, width, columns)
        top, _, left, _ = box

        def line(rows: Tensor) -> Tensor:
            first, second = (window[(rows[:, None] - top).numpy(), (at - left).numpy()] for at in (before, after))
            return torch.lerp(torch.from_numpy(first).float(), torch.from_numpy(second).float(), across[:, None])

        pixels = torch.lerp(line(above), line(below), down[:, None, None]) / 255
        return ((pixels - self.pyramid.mean) / self.pyramid.std).permute(2, 0, 1)


def _blend(size: int, resized: int, lines: range) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """For lines of the resized picture: the two lines of the original that they blend, and the share of the second.

    The same float32 arithmetic as ``F.interpolate`` with ``align_corners=False``, which rounds alike.
    """
    scale = torch.tensor(size, dtype=torch.float32) / resized
    centre = (scale * (torch.arange(lines.start, lines.stop) + 0.5) - 0.5).clamp(min=0)
    first = centre.long().clamp(max=size - 1)
    return first, (first + 1).clamp(max=size - 1), (centre - first).clamp(0, 1)
