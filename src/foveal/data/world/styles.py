"""The looks of a picture: pure functions from image to image. None moves a pixel, so that masks and boxes stay true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

Look = Callable[[Image.Image, int], Image.Image]


def stylise(image: UInt8[np.ndarray, "h w 3"], style: str, variant: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image in the style; ``variant`` seeds what is random in it. ``"flat"`` gives the image itself."""
    if style == "flat":
        return image
    if style not in _LOOKS:
        raise ValueError(f"style is {style!r}; it must be one of flat, {', '.join(_LOOKS)}")
    return np.array(_LOOKS[style](Image.fromarray(image), variant))


def _unit(image: Image.Image) -> float:
    """A pixel of a 64-pixel picture: effects have the same width at any size."""
    return min(image.size) / 64


def _contours(image: Image.Image) -> Image.Image:
    """How much the brightness differs around each pixel; judged at 192 to 384 pixels, for lines of the same width."""
    width, height = image.size
    scale = min(384, max(192, width, height)) / max(width, height)
    grey = image.convert("L").resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    rim = ImageChops.subtract(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    return rim.resize((width, height), Image.Resampling.BICUBIC)


def _sketch(image: Image.Image, variant: int) -> Image.Image:
    """Pencil on paper: dark where the picture changes, with a little of its shade left."""
    ink = _contours(image).point([max(40, round(255 - 2.6 * max(0, value - 14))) for value in range(256)])
    shade = image.convert("L").point([round(176 + 79 * value / 255) for value in range(256)])
    return ImageOps.colorize(ImageChops.multiply(ink, shade), (40, 40, 48), (252, 249, 240))


def _cartoon(image: Image.Image, variant: int) -> Image.Image:
    """Few, strong colours and black contours."""
    strong = ImageEnhance.Color(image).enhance(1.6)
    flat = strong.point([round(value / 51) * 51 for value in range(256)] * 3)
    ink = _contours(image).point([min(255, max(0, 255 - 5 * (value - 70))) for value in range(256)])
    return ImageChops.multiply(flat, Image.merge("RGB", (ink, ink, ink)))


def _night(image: Image.Image, variant: int) -> Image.Image:
    dark = [[round(value * share) for value in range(256)] for share in (0.34, 0.4, 0.6)]
    return image.point([level for channel in dark for level in channel])


def _fog(image: Image.Image, variant: int) -> Image.Image:
    """Denser towards the top, which is farther away."""
    height = image.size[1]
    amount = np.linspace(0.74, 0.5, height)[:, None] * 255
    density = Image.fromarray(np.broadcast_to(amount, image.size[::-1]).astype(np.uint8))
    return Image.composite(Image.new("RGB", image.size, (214, 219, 224)), image, density)


def _blur(image: Image.Image, variant: int) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.9 * _unit(image)))


def _noise(image: Image.Image, variant: int) -> Image.Image:
    """Grains of colour; a block of them is repeated over large pictures."""
    rng = np.random.default_rng((variant, 1))
    width, height = image.size
    block = min(512, height), min(512, width)
    grains = rng.normal(0.0, 34.0, (*block, 3)).clip(-127, 127).astype(np.int16)
    pixels = np.array(image)
    for top in range(0, height, block[0]):
        for left in range(0, width, block[1]):
            part = pixels[top : top + block[0], left : left + block[1]]
            part[...] = (part + grains[: part.shape[0], : part.shape[1]]).clip(0, 255)
    return Image.fromarray(pixels)


def _inverted(image: Image.Image, variant: int) -> Image.Image:
    return ImageOps.invert(image)


def _grey(image: Image.Image, variant: int) -> Image.Image:
    return image.convert("L").convert("RGB")


def _sepia(image: Image.Image, variant: int) -> Image.Image:
    return ImageOps.colorize(image.convert("L"), (44, 26, 12), (255, 240, 210), mid=(156, 116, 74))


def _mosaic(image: Image.Image, variant: int) -> Image.Image:
    width, height = image.size
    tile = max(2, round(2 * _unit(image)))
    coarse = image.resize((-(-width // tile), -(-height // tile)), Image.Resampling.BOX)
    tiles = coarse.resize((coarse.width * tile, coarse.height * tile), Image.Resampling.NEAREST)
    return tiles.crop((0, 0, width, height))


_LOOKS: dict[str, Look] = {
    "sketch": _sketch,
    "cartoon": _cartoon,
    "night": _night,
    "fog": _fog,
    "blur": _blur,
    "noise": _noise,
    "inverted": _inverted,
    "grey": _grey,
    "sepia": _sepia,
    "mosaic": _mosaic,
}
