"""Pictures of what a model was given of a picture: some patches of it, or a view with the rest in black."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveal.demo.eyes import Image

VEIL = np.array([64, 74, 84], np.float32)
LINE = np.array([255, 255, 255], np.uint8)


def only(image: Image, kept: Sequence[int], side: int) -> Image:
    """The picture with a grey veil over all patches but ``kept`` and a line around them.

    Args:
        image: (h, w, 3), its sides multiples of ``side``.
        kept: patches in raster order, of ``side`` × ``side``.
        side: patches along each side.
    """
    keep = np.zeros(side * side, bool)
    keep[list(kept)] = True
    if keep.all():
        return image
    height, width = image.shape[:2]
    mask = keep.reshape(side, side).repeat(height // side, 0).repeat(width // side, 1)
    veiled = 0.3 * image.mean(2, keepdims=True) + 0.7 * VEIL
    picture = np.where(mask[..., None], image, veiled.round().astype(np.uint8))
    edge = np.zeros_like(mask)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    picture[edge] = LINE
    return picture


def enlarged(image: Image, like: Image) -> Image:
    """Every pixel as a square, at the size of a picture that is a whole number of times as large."""
    scale = like.shape[0] // image.shape[0]
    return image.repeat(scale, 0).repeat(scale, 1)
