"""How STIC spoils a picture so that a model describes it badly: too small, or in wrong light and colours."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Corruption = Literal["low_resolution", "color_jitter"]


def low_resolution(image: Float[Tensor, "3 h w"], size: int = 20) -> Float[Tensor, "3 _ _"]:
    """The picture with a shorter side of ``size`` pixels, its aspect kept, by bilinear interpolation with antialiasing.

    ValueError: no RGB picture, or a size below 1.
    """
    check_rgb(image)
    _check_size(size)
    height, width = image.shape[1:]
    long = int(size * max(height, width) / min(height, width))
    shape = (size, long) if height <= width else (long, size)
    whole = image if image.dtype == torch.float64 else image.float()  # torch has no antialiasing in half precision
    return F.interpolate(whole[None], shape, mode="bilinear", antialias=True, align_corners=False)[0].to(image)


def color_jitter(image: Float[Tensor, "3 h w"], brightness: float, hue: float) -> Float[Tensor, "3 h w"]:
    """Brightness, then hue.

    Args:
        image: RGB in [0, 1].
        brightness: factor ≥ 0 on all values, which are cut off at 1.
        hue: by how much of the hue circle every colour is turned, −0.5 to 0.5; grey stays grey.

    Raises:
        ValueError: no RGB picture, or a value out of range.
    """
    check_rgb(image)
    if not 0 <= brightness < float("inf"):
        raise ValueError(f"brightness={brightness}: must be a factor ≥ 0")
    if not -0.5 <= hue <= 0.5:
        raise ValueError(f"hue={hue}: must lie in [-0.5, 0.5]")
    whole = image if image.dtype == torch.float64 else image.float()
    return _turned((whole * brightness).clamp(0, 1), hue).to(image)


def corrupt_image(
    image: Float[Tensor, "3 h w"],
    generator: torch.Generator,
    *,
    p_low_resolution: float = 0.5,
    size: int = 20,
    brightness: float = 0.5,
    hue: float = 0.3,
) -> tuple[Float[Tensor, "3 _ _"], Corruption]:
    """The spoiled picture, and which of the two ways it went.

    Args:
        image: RGB in [0, 1].
        generator: draws the way, and for `color_jitter` a factor in [1 − brightness, 1 + brightness] and a turn in
            [−hue, hue].
        p_low_resolution: probability of `low_resolution`.
        size: for it.
        brightness: 0 to 1.
        hue: 0 to 0.5.

    Raises:
        ValueError: no RGB picture, or a value out of range.
    """
    check_rgb(image)
    ranges = {"p_low_resolution": (p_low_resolution, 1.0), "brightness": (brightness, 1.0), "hue": (hue, 0.5)}
    for name, (value, most) in ranges.items():
        if not 0 <= value <= most:
            raise ValueError(f"{name}={value}: must lie in [0, {most}]")
    _check_size(size)
    if float(torch.rand((), generator=generator)) < p_low_resolution:
        return low_resolution(image, size), "low_resolution"
    light, turn = (2 * torch.rand(2, generator=generator) - 1).tolist()
    return color_jitter(image, 1 + brightness * light, hue * turn), "color_jitter"


def _turned(image: Float[Tensor, "3 h w"], hue: float) -> Float[Tensor, "3 h w"]:
    """Hue plus ``hue`` modulo 1, at the same saturation and value in HSV."""
    red, green, blue = image
    value, low = image.amax(0), image.amin(0)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # each channel falls from value to value − chroma with the distance of its own place on the circle
    turned = (sixths + 6 * hue) % 6
    channels = [value - chroma * _fall((place + turned) % 6) for place in (5, 3, 1)]
    return torch.stack(channels)


def _fall(sixths: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    return torch.minimum(sixths, 4 - sixths).clamp(0, 1)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")


def check_rgb(image: Tensor) -> None:
    """ValueError unless it is an RGB picture of floats, with pixels."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel() or not image.is_floating_point():
        raise ValueError(f"image {tuple(image.shape)} of {image.dtype}: give RGB (3, H, W) as floats in [0, 1]")
