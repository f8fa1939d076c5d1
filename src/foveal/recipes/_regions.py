"""Scenes as regions: jittered boxes, each with a feature and a detector's opinion.

A region is the box of a thing, its corners off by up to a tenth of its sides, or one of two distractors anywhere. Its
feature is a frozen random projection of the crop. The detector is right in nine of ten parts of its probability.
"""

from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.lab import Run
from foveal.pretrain.uniter import region_position_features
from foveal.recipes._regions_words import COLOURS, NOUNS

SCENES = world.WorldConfig(
    size=48, things=(3, 3), nouns=NOUNS, colours=COLOURS, tint=1.0, textures=("plain",), repeats=0.0, companions=0.0,
    min_visible=0.8, depth=(2.0, 2.5), backgrounds=("plain",)
)  # fmt: skip
REGIONS, CROP, WIDTH = 5, 8, 64


@dataclass(frozen=True)
class Regions:
    """What all texts about ``n`` scenes are read with."""

    features: Float[Tensor, "n r d"]
    positions: Float[Tensor, "n r 7"]
    probs: Float[Tensor, "n r c"]
    things: list[list[tuple[str, str]]]
    """(colour, noun) of the regions 0, 1, 2 of every scene."""

    def batch(self, ids: Int[Tensor, "b l"], rows: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Texts with the regions of scenes ``rows``."""
        present = torch.ones(len(rows), REGIONS, dtype=torch.bool)
        regions = {"region_features": self.features[rows], "region_positions": self.positions[rows]}
        texts = {"input_ids": ids, "text_mask": ids != 0}
        return {**texts, **regions, "region_mask": present, "detector_probs": self.probs[rows]}


def scenes(run: Run, first: int, n: int) -> Regions:
    """``n`` scenes of world ``first`` + seed, of three different things each."""
    drawn = (lay_out(SCENES, first + run.seed, i) for i in count())
    kept = list(islice((scene for scene in drawn if len({thing.noun for thing in scene.things}) == 3), run.size(n)))
    rng, project = run.rng(f"boxes {first}"), run.generator("projection")
    crops, boxes, things = [], np.zeros((len(kept), REGIONS, 4), np.float32), []
    for i, scene in enumerate(kept):
        picture = draw(scene, SCENES.size)
        sides = np.array([[x1 - x0, y1 - y0] * 2 for x0, y0, x1, y1 in picture.boxes])
        boxes[i, :3] = np.array(picture.boxes) + sides * rng.uniform(-0.1, 0.1, (3, 4))
        corners = rng.uniform(0, 32, (2, 2))
        boxes[i, 3:] = np.concatenate([corners, corners + rng.uniform(8, 16, (2, 2))], 1)
        boxes[i] = boxes[i].clip(0, 48)
        pixels = to_tensor(picture.image[None])
        crops.append(torch.stack([_crop(pixels, box) for box in boxes[i]]))
        things.append([(thing.colour or "own", thing.noun) for thing in scene.things])
    flat = torch.stack(crops).flatten(2)
    features = (flat - flat.mean()) @ torch.randn(flat.shape[2], WIDTH, generator=project) / flat.shape[2] ** 0.5
    classes = torch.tensor([[1 + NOUNS.index(noun) for _, noun in row] + [0, 0] for row in things])
    probs = 0.9 * F.one_hot(classes, 1 + len(NOUNS)) + 0.1 / (1 + len(NOUNS))
    positions = region_position_features(torch.from_numpy(boxes), torch.full((len(boxes), 2), 48.0))
    return Regions(features / features.std(), positions, probs, things)


def _crop(pixels: Float[Tensor, "1 3 h w"], box: np.ndarray) -> Float[Tensor, "3 c c"]:
    x0, y0, x1, y1 = (int(side) for side in box.round())
    part = pixels[:, :, min(y0, 47) : max(y1, y0 + 1), min(x0, 47) : max(x1, x0 + 1)]
    return F.interpolate(part, (CROP, CROP), mode="bilinear")[0]
