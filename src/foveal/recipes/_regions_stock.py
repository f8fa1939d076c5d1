"""A stock of regions: jittered boxes, each with a feature and a detector's opinion.

A region is the box of a thing, its corners off by up to a tenth of its sides, or a distractor anywhere. Its feature is
what nano-clip's frozen image tower, which stands for the detector of the paper, makes of the crop. As this costs most
of all, a stock of regions is cut from few pictures, and a scene is three things of the stock and a distractor, each
with its own place. The detector is right in nine of ten parts of its probability.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from foveal import zoo
from foveal.data import world
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.pretrain.uniter import region_position_features
from foveal.recipes._regions_words import COLOURS, NOUNS
from foveal.zoo.dual_encoder import DualEncoder

SIDE = 96
PICTURES = world.WorldConfig(
    size=SIDE, things=(3, 3), nouns=NOUNS, sprites=0.5, colours=COLOURS, tint=1.0, textures=("plain",), repeats=0.0,
    companions=0.0, min_visible=0.8, depth=(2.0, 2.5), backgrounds=("plain",)
)  # fmt: skip
WIDTH = 128


@dataclass(frozen=True)
class Stock:
    """Regions that scenes are put together from; three of four are things, the fourth is a distractor."""

    features: Float[Tensor, "m d"]
    positions: Float[Tensor, "m 7"]
    probs: Float[Tensor, "m c"]
    things: list[tuple[str, str] | None]
    """(colour, noun), None for a distractor."""


def stocks(run: Run, train: int, test: int) -> tuple[Stock, Stock]:
    """The regions of ``train`` pictures, and of ``test`` later ones; features are centred on the mean of the former."""
    found = [stock(run, first, n) for first, n in ((0, train), (10_000, test))]
    mean = found[0].features.mean(0)
    spread = (found[0].features - mean).std()
    one, other = (Stock((s.features - mean) / spread, s.positions, s.probs, s.things) for s in found)
    return one, other


def stock(run: Run, first: int, n: int) -> Stock:
    """The regions of ``n`` pictures of world ``first`` + seed."""
    rng, crops, boxes, things = run.rng(f"boxes {first}"), [], [], []
    for i in range(run.size(n)):
        scene = lay_out(PICTURES, first + run.seed, i)
        picture = draw(scene, SIDE)
        tight = np.array(picture.boxes)
        sides = np.tile(tight[:, 2:] - tight[:, :2], 2)
        corner = rng.uniform(0, 0.7 * SIDE, 2)
        anywhere = np.concatenate([corner, corner + rng.uniform(0.15, 0.3, 2) * SIDE])
        found = np.concatenate([tight + sides * rng.uniform(-0.1, 0.1, (3, 4)), anywhere[None]]).clip(0, SIDE)
        crops += [_crop(picture.image, box) for box in found]
        boxes.append(found)
        things += [*((thing.colour or "own", thing.noun) for thing in scene.things), None]
    nano = zoo.load("nano-clip")
    features = unit_rows(DualEncoder(nano.model, nano.processor, 64).image_features(crops))
    classes = torch.tensor([1 + NOUNS.index(thing[1]) if thing else 0 for thing in things])
    probs = 0.9 * F.one_hot(classes, 1 + len(NOUNS)) + 0.1 / (1 + len(NOUNS))
    corners = torch.from_numpy(np.concatenate(boxes)).float()[:, None]
    positions = region_position_features(corners, torch.full((len(corners), 2), float(SIDE)))[:, 0]
    return Stock(features, positions, probs, things)


def _crop(image: UInt8[np.ndarray, "h w 3"], box: Float[np.ndarray, "4"]) -> UInt8[np.ndarray, "h w 3"]:
    x0, y0, x1, y1 = (int(side) for side in box.round())
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), box=(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))))
