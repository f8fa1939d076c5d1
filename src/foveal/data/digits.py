"""Handwritten digits, 8 x 8 pixels, bundled with scikit-learn (E. Alpaydin and C. Kaynak, UCI, 1998; CC BY 4.0).

The 1,797 digits stand in the order in which 13 people wrote them. The split cuts that order once, because the same hand
on both sides of a random split makes the test too easy.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from foveal.data.bundled import LazySamples
from foveal.data.record import Sample

TEST = 360  # the last ones
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def samples(split: str | None = None, size: int = 8) -> LazySamples:
    """Light digits on black, ``size`` x ``size`` pixels, with the digit as label and in the caption "the digit four".

    Args:
        split: ``"train"`` (the first 1,437), ``"test"`` (the last 360) or None for all.
        size: 8 gives the pixels as they are, more enlarges them (bicubic).

    Raises:
        ValueError: when ``split`` is another word, or ``size`` is below 8.
    """
    total = len(_digits()[0])
    parts = {None: range(total), "train": range(total - TEST), "test": range(total - TEST, total)}
    if split not in parts:
        raise ValueError(f"split={split!r}: must be 'train', 'test' or None")
    if size < 8:
        raise ValueError(f"size={size}: must be at least 8 pixels, the size of the source")
    return LazySamples(tuple((index, size) for index in parts[split]), _sample)


@cache
def _digits() -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, "n"]]:
    from sklearn.datasets import load_digits  # half a second

    bunch = load_digits()  # counts of dark pixels in 0…16
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


def _sample(item: tuple[int, int]) -> Sample:
    index, size = item
    grey, digits = _digits()
    digit = int(digits[index])
    drawing = Image.fromarray(grey[index]).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    return Sample(
        key=f"digits/{index:04d}",
        images=(np.array(drawing),),
        captions=(f"the digit {NAMES[digit]}",),
        labels=(str(digit),),
        meta={"licence": "CC BY 4.0", "source": f"scikit-learn: load_digits()[{index}]"},
    )
