"""What the tasks for dual encoders share: asking for features, keeping them as text, and ranking by cosine."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.evaluate.base import Item, Json
from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import ensemble_text_features


def embed(model: Any, items: Sequence[Item]) -> list[Json]:
    """Features of each item's pictures, and of its texts if it has any, as text that loses no bit."""
    drawn = [item.pictures() if item.pictures else [] for item in items]
    images = [image for group in drawn for image in group]
    texts = [text for item in items for text in item.texts]
    image_rows = iter(model.image_features(images) if images else ())
    text_rows = iter(model.text_features(texts) if texts else ())
    return [
        {
            "image": [packed(next(image_rows)) for _ in group],
            "text": [packed(next(text_rows)) for _ in item.texts],
        }
        for item, group in zip(items, drawn)
    ]


def packed(row: Float[Tensor, " d"]) -> str:
    """float32, little-endian, in base 64."""
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()


def image_rows(outputs: Sequence[Json]) -> Float[Tensor, "n d"]:
    """The first picture's features of every output that has pictures."""
    return torch.stack([_unpacked(output["image"][0]) for output in outputs if output["image"]])


def text_rows(outputs: Sequence[Json]) -> Float[Tensor, "n d"]:
    """The first text's features of every output that has texts."""
    return torch.stack([_unpacked(output["text"][0]) for output in outputs if output["text"]])


def class_rows(outputs: Sequence[Json]) -> Float[Tensor, "k d"]:
    """Unit rows, each the ensemble of all texts of an output that has texts."""
    return ensemble_text_features(
        torch.stack([torch.stack([_unpacked(text) for text in output["text"]]) for output in outputs if output["text"]])
    )


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """In float64, so that no order hangs on the last bit of a sum."""
    return unit_rows(a.double()) @ unit_rows(b.double()).T


def ranks(scores: Float[Tensor, "n m"], right: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Place of the right column in each row, from 1; equal scores count against it, or a constant would be perfect."""
    own = scores[torch.arange(len(scores)), torch.as_tensor(right)]
    return (scores >= own[:, None]).sum(1).numpy()


def _unpacked(text: str) -> Float[Tensor, " d"]:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())
