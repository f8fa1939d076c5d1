"""From pictures of any size to the tensors that networks read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

if TYPE_CHECKING:  # seconds of import that resizing alone does not need
    from torch import Tensor


def resize_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The centre square of the picture, resized (bicubic, anti-aliased) to ``size`` x ``size`` pixels.

    A square picture of that size comes back bit for bit. Always a new array.

    Raises:
        ValueError: when ``image`` is not an RGB uint8 array with at least one pixel, or ``size`` is below 1.
    """
    check_rgb(image)
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(images: UInt8[np.ndarray, "*n h w 3"]) -> Float[Tensor, "*n 3 h w"]:
    """RGB pixels 0…255, one picture or a stack of them, as float32 in [0, 1] with the channels first.

    Raises:
        ValueError: when ``images`` is not a uint8 array of shape (h, w, 3) or (n, h, w, 3).
    """
    import torch

    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}: must be uint8 (h, w, 3) or (n, h, w, 3)"
        )
    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, -3))  # also drops negative strides of flipped views
    return torch.tensor(channels_first, dtype=torch.float32) / 255


def check_rgb(image: UInt8[np.ndarray, "h w 3"]) -> None:
    """ValueError unless the array is what `Sample.images` holds: uint8, (h, w, 3), not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"image of shape {shape} and type {dtype}: must be an RGB array (h, w, 3) of uint8")
    if image.size == 0:
        raise ValueError(f"image of shape {image.shape} has no pixels")
