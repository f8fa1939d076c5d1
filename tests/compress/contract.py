"""What every reducer of visual tokens promises. A new one adds one `Case`; `test_contract.py` runs them all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from foveal.compress.aim import AIM
from foveal.compress.base import keep_count
from foveal.compress.fopru import FoPru
from foveal.compress.gsearch import LayerwiseKeep
from foveal.compress.pyramiddrop import PyramidDrop
from foveal.compress.runtime import PrefillReducer

from .tiny import KINDS, LAYERS, Kind


@dataclass(frozen=True)
class Case:
    """One reducer under test, on models of `tiny.LAYERS` layers."""

    name: str
    build: Callable[[Kind], PrefillReducer]
    """It drops something from every prompt with an image, of whatever kind."""
    keep_all: Callable[[Kind], PrefillReducer]
    """The same method, set to keep every token."""
    renumbers: Callable[[int], bool] = lambda layer: True
    """Do tokens get new positions when some are dropped at this layer (of models with one-axis positions)?"""
    merges: bool = False
    """Does a surviving token hold the mean of several?"""
    trains: bool = True
    """Is it made for training too?"""
    kinds: tuple[str, ...] = tuple(kind.name for kind in KINDS)
    """Models that it is tried on."""
    refused: tuple[str, ...] = ()
    """Models that it cannot work on and must refuse."""


class Thin(PrefillReducer):
    """Not a method: goes through what the runtime offers and no other case needs.

    Drops every other image token before the first layer, and half of the rest by the attention of layer 2, as layer 3
    begins. Reads the vision side.
    """

    looks_back = True
    reads_features = True

    def __init__(self, kind: Kind, share: float = 0.5) -> None:
        super().__init__()
        self.share, self.positions = share, "original" if kind.multi_axis else "compact_first"

    def annotate(self, features, arguments):
        assert isinstance(arguments["pixel_values"], torch.Tensor)  # by name, however the model passed it
        for feature in features:
            feature.seen = len(feature)

    def select(self, step):
        if step.features is not None:
            # InternVL's stacked tensor is taken apart anew each time, and what was noted on its tiles is gone
            assert sum(getattr(f, "seen", len(f)) for f in step.features) == sum(step.n_image)
            if step.layer == 0:
                for (sample, places), feature in zip(step.images(), step.features, strict=True):
                    torch.testing.assert_close(step.hidden[sample, places], feature)
        if step.layer not in (0, 3):
            return None
        return [self._half(step, sample) for sample in range(len(step.n_image))]

    def _half(self, step, sample):
        places, is_image = step.sample(sample)
        images = places[is_image]
        keep = keep_count(len(images), self.share)
        if step.layer == 0:
            return images[:: round(1 / self.share)]
        query, key = step.previous.queries_and_keys(sample)
        assert len(places) == query.shape[1]  # what layer 2 processed is what enters layer 3
        scores = (query.mean((0, 1)) @ key.mean(0).T)[is_image]
        step.previous.spend(2 * key.shape[1] * key.shape[2])
        return images[scores.topk(keep).indices.sort().values]


CASES = [
    Case(
        "thin",
        Thin,
        lambda kind: Thin(kind, 1.0),
        renumbers=lambda layer: layer == 0,
        kinds=("llava", "llava_next", "internvl", "qwen2_vl"),
    ),
    Case(
        "gsearch",
        lambda kind: LayerwiseKeep((1, 1, 0.7, 0.7, 0.3, 0.1), kind.positions),
        lambda kind: LayerwiseKeep((1,) * LAYERS, kind.positions),
        trains=False,
        kinds=("llava_next", "qwen2_vl"),
    ),
    Case(
        "pyramiddrop",
        lambda kind: PyramidDrop((1, 3, 4), (0.5, 0.3, 0.1), kind.positions),
        lambda kind: PyramidDrop((1, 3), (1.0, 1.0), kind.positions),
    ),
    Case(
        "pyramiddrop-original",
        lambda kind: PyramidDrop((2, 4), (0.5, 0.0), "original"),
        lambda kind: PyramidDrop((2, 4), (1.0, 1.0), "original"),
        renumbers=lambda layer: False,
        kinds=("llava", "smolvlm"),
    ),
    Case(
        "fopru",
        lambda kind: FoPru(0.3),
        lambda kind: FoPru(1.0, "row"),
        kinds=("llava", "llava_next"),
        refused=("internvl", "smolvlm"),
    ),
    Case(
        "fopru.original",
        lambda kind: FoPru(0.3, positions="original"),
        lambda kind: FoPru(1.0, positions="original"),
        renumbers=lambda layer: False,
        kinds=("llava",),
    ),
    Case(
        "aim",
        lambda kind: AIM(0.6, 1, 0.3),
        lambda kind: AIM(1.0, 6),
        renumbers=lambda layer: layer == 0,
        merges=True,
        kinds=("llava", "llava_next"),
        refused=("internvl", "smolvlm"),
    ),
]
