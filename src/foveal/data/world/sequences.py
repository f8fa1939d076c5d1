"""Samples of several images: the same scene from two places, and clips in which something happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from foveal.data.record import Region, Sample
from foveal.data.world.clips import clip
from foveal.data.world.config import WorldConfig
from foveal.data.world.dataset import World, checked_index, semantic_mask, word_rng
from foveal.data.world.draw import draw
from foveal.data.world.narrate import clip_caption, clip_questions, story
from foveal.data.world.views import flow, second_view


@dataclass(frozen=True)
class ViewPairs(Sequence[Sample]):
    """Samples of ``world`` with a second image, taken after the camera has moved and zoomed.

    What `World` says is about the first image. ``meta`` adds ``view`` (`foveal.data.world.views.View`: the second scene
    and which thing is which), ``instance2`` and ``depth2`` of the second image, ``flow`` (h, w, 2: where each pixel of
    the first image is in the second, x and y in pixels) and ``covisible`` (h, w: whether it is seen there).

    Attributes:
        world: first images; with ``extras=()`` this is fastest.
        shift, zoom, style, distractors: as for `foveal.data.world.views.second_view`.
    """

    world: World = field(default_factory=World)
    shift: float = 0.6
    zoom: float = 1.25
    style: str | None = None
    distractors: int = 0

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices: samples are large
        place = checked_index(index, len(self))
        scene = self.world.scene(place)
        rng = word_rng(self.world.seed, place, "view")
        view = second_view(scene, rng, shift=self.shift, zoom=self.zoom, style=self.style, distractors=self.distractors)
        first, second = draw(scene, self.world.config.size), draw(view.scene, self.world.config.size)
        sample = self.world.describe(scene, first, place)
        moved, covisible = flow(view, first, second)
        extra = {
            "view": view,
            "instance2": second.instance,
            "depth2": second.depth,
            "flow": moved,
            "covisible": covisible,
        }
        return sample.with_(images=(first.image, second.image), meta={**sample.meta, **extra})


@dataclass(frozen=True)
class Clips(Sequence[Sample]):
    """Films as samples: ``images`` are the frames.

    ``captions`` are one line and the whole story; ``questions`` are those of `foveal.data.world.narrate.CLIP_KINDS`;
    ``regions``, ``semantic`` and ``depth`` belong to the first frame. ``meta``: ``clip`` (things, frames, events);
    ``story`` (sentences with the indices of their things); ``instances`` (one mask for each frame, in which 1 + i is
    thing i of the clip); ``boxes`` (frame -> thing of the clip -> box in pixels).

    Attributes:
        config: what scenes are made of.
        seed: of the world, at least 0.
        length: number of clips.
        frames: of each, 2 to 256.
    """

    config: WorldConfig = field(default_factory=WorldConfig)
    seed: int = 0
    length: int = 10_000
    frames: int = 8

    def __post_init__(self) -> None:
        if self.seed < 0 or self.length < 0:
            raise ValueError(f"seed={self.seed}, length={self.length}: neither can be negative")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices: samples are large
        place = checked_index(index, self.length)
        film = clip(self.config, self.seed, place, self.frames)
        drawings = [draw(frame, self.config.size) for frame in film.frames]
        told = story(film, word_rng(self.seed, place, "story"))
        line = clip_caption(film, word_rng(self.seed, place, "caption"))
        first = film.frames[0]
        return Sample(
            key=film.key,
            images=tuple(drawing.image for drawing in drawings),
            captions=(line, " ".join(sentence.text for sentence in told)),
            labels=tuple(dict.fromkeys(thing.noun for thing in film.things)),
            regions=tuple(
                Region((x0, y0, x1, y1), thing.noun) for (x0, y0, x1, y1), thing in zip(drawings[0].boxes, first.things)
            ),
            questions=clip_questions(film, word_rng(self.seed, place, "questions")),
            semantic=semantic_mask(first, drawings[0].instance),
            depth=drawings[0].depth,
            meta={
                "clip": film,
                "story": told,
                "instances": tuple(
                    _renumbered(drawing.instance, there) for drawing, there in zip(drawings, film.present)
                ),
                "boxes": tuple(dict(zip(there, drawing.boxes)) for drawing, there in zip(drawings, film.present)),
            },
        )


def _renumbered(instance: UInt8[np.ndarray, "h w"], there: Sequence[int]) -> UInt8[np.ndarray, "h w"]:
    """From the numbers of a frame to those of the clip."""
    table = np.zeros(256, np.uint8)
    table[1 : 1 + len(there)] = [1 + number for number in there]
    return table[instance]
