"""The one record: every reader, the procedural world and every curation step speak `Sample`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation by ``"system"``, ``"user"`` or ``"assistant"``; ``<image>`` in it marks an image."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the first image: where it is and what can be said about it."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the first image; x1 and y1 exclusive."""
    label: str | None = None
    caption: str | None = None
    mask: Bool[np.ndarray, "h w"] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers, the most common one first; ``kind`` is e.g. ``"count"`` or ``"colour"``."""

    text: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Images with whatever is known about them. Fields that a source does not know stay empty.

    Images are upright (EXIF applied) RGB arrays. Several images are several views, pages or frames.
    """

    key: str
    """Unique and stable within its source: it names the sample in reports and errors."""
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Image-level class names."""
    regions: tuple[Region, ...] = ()
    questions: tuple[Question, ...] = ()
    conversation: tuple[Turn, ...] = ()
    semantic: UInt8[np.ndarray, "h w"] | None = None
    depth: Float[np.ndarray, "h w"] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The first image; ValueError when the sample has none."""
        if not self.images:
            raise ValueError(f"sample {self.key!r} has no image")
        return self.images[0]

    @property
    def caption(self) -> str:
        """The first caption; ValueError when the sample has none."""
        if not self.captions:
            raise ValueError(f"sample {self.key!r} has no caption")
        return self.captions[0]

    def with_(self, **changes: Any) -> Sample:
        """A copy with some fields replaced."""
        return replace(self, **changes)
