"""The changes that a picture of AdaptCLIPZS goes through at each visit: a part of it, mirrored or not, in other light.

As in the release: a crop of 8 to 100 % of the area with sides of 3:4 to 4:3, a flip for every other picture, and
brightness, contrast and saturation by factors of 0.6 to 1.4 in random order.
"""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from foveal.data.transforms import check_rgb

AREA, RATIO, LIGHT = (0.08, 1.0), (3 / 4, 4 / 3), (0.6, 1.4)
TRIES = 10
"""Crops to draw before the whole picture is taken."""
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def random_view(image: UInt8[np.ndarray, "h w 3"], size: int, generator: torch.Generator) -> Image.Image:
    """One view of the picture, ``size`` × ``size`` pixels."""
    check_rgb(image)
    picture = Image.fromarray(image)
    view = picture.resize((size, size), Image.Resampling.BILINEAR, box=_crop(picture, generator))
    if torch.rand((), generator=generator) < 0.5:
        view = ImageOps.mirror(view)
    for place in torch.randperm(len(ENHANCERS), generator=generator).tolist():
        view = ENHANCERS[place](view).enhance(_between(*LIGHT, generator))
    return view


def _crop(picture: Image.Image, generator: torch.Generator) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) inside the picture."""
    width, height = picture.size
    for _ in range(TRIES):
        area = width * height * _between(*AREA, generator)
        ratio = math.exp(_between(math.log(RATIO[0]), math.log(RATIO[1]), generator))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(torch.randint(width - wide + 1, (), generator=generator))
            top = int(torch.randint(height - high + 1, (), generator=generator))
            return (left, top, left + wide, top + high)
    return (0, 0, width, height)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
