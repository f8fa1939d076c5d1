"""From a list of samples to a batch, for `foveal.train.FitConfig(collate=...)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from jaxtyping import UInt8

from foveal.data.record import Sample
from foveal.data.transforms import check_rgb

if TYPE_CHECKING:
    from torch import Tensor


class PixelsAndCaptions(TypedDict):
    """Pictures of one size with a caption each. ``__key__`` is what `fit` names in its errors."""

    pixels: UInt8[Tensor, "n 3 h w"]
    captions: list[str]
    __key__: list[str]


def pixels_and_captions(samples: Sequence[Sample]) -> PixelsAndCaptions:
    """First images, stacked as bytes 0…255 with the channels first, and first captions.

    Bytes, because they are a quarter of the copying that floats cost: ``batch["pixels"].float() / 255`` on the device.

    Raises:
        ValueError: when ``samples`` is empty, a sample lacks an image or caption, or the images differ in size.
    """
    import torch

    if not samples:
        raise ValueError("samples is empty: a batch needs at least one")
    images = [sample.image for sample in samples]
    for image in images:
        check_rgb(image)
    shape = images[0].shape
    if odd := [sample for sample, image in zip(samples, images) if image.shape != shape]:
        shown = ", ".join(f"{sample.key!r} {_size(sample)}" for sample in odd[:3])
        raise ValueError(
            f"samples differ in image size: {samples[0].key!r} has {_size(samples[0])} pixels, {shown}"
            f"{' and more' if len(odd) > 3 else ''}; bring them to one size first, e.g. with resize_square"
        )
    return {
        "pixels": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        "captions": [sample.caption for sample in samples],
        "__key__": [sample.key for sample in samples],
    }


def _size(sample: Sample) -> str:
    height, width = sample.image.shape[:2]
    return f"{width} x {height}"
