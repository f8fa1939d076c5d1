"""Four questions to the frozen patch tokens of an image encoder, about scenes of one emoji at 32 px."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.world.draw import draw
from foveal.lab import Run
from foveal.nn.linear_maps import fit_linear_map
from foveal.pretrain.m3i_decoders import patch_tokens
from foveal.recipes._singles import NOUNS, SCENES, SIZES, WORDS, captions

PATCH, WIDTH = 8, 64
NEAR = replace(SCENES, depth=(1.4, 1.6))  # even what is small covers a patch or two


@dataclass(frozen=True)
class Shown:
    """Pixels are in [−2, 2]. ``attributes``: size and colour behind. ``covered``: is most of the patch the emoji's?"""

    pixels: Float[Tensor, "n 3 32 32"]
    ids: Int[Tensor, "n l"]
    nouns: Int[Tensor, " n"]
    attributes: Int[Tensor, "n 2"]
    covered: Bool[Tensor, "n p"]


def shown(run: Run, first: int, n: int) -> Shown:
    """``n`` scenes of world ``first`` + seed."""
    drawn = world.World(NEAR, first + run.seed, run.size(n), ())
    scenes = [drawn.scene(i) for i in range(len(drawn))]
    pictures = [draw(scene, NEAR.size) for scene in scenes]
    # all-positive pixels give all tokens the same large offset: a momentum encoder's features would be nearly constant
    pixels = 4 * (to_tensor(np.stack([picture.image for picture in pictures])) - 0.5)
    masks = torch.from_numpy(np.stack([picture.instance > 0 for picture in pictures])).float()[:, None]
    colours = sorted(world.COLOURS)
    attributes = [[SIZES.index(s.things[0].size), colours.index(s.background.name)] for s in scenes]
    nouns = torch.tensor([NOUNS.index(scene.things[0].noun) for scene in scenes])
    covered = F.avg_pool2d(masks, PATCH).flatten(1) > 0.5
    return Shown(pixels, captions(scenes)[1], nouns, torch.tensor(attributes), covered)


@torch.no_grad()
def answers(encoder: nn.Module, train: Shown, test: Shown) -> dict[str, float]:
    """In percent: linear probe of the noun, 5 nearest neighbours for size and colour, IoU of patches that the emoji
    covers, and R@1 of captions by a ridge map from the mean token to bags of words; ``mean``: of the four."""
    encoder.eval()
    tokens = [torch.cat([patch_tokens(encoder, part)[0] for part in side.pixels.split(250)]) for side in (train, test)]
    scale = tokens[0].std((0, 1)) + 1e-6
    tokens = [(side - tokens[0].mean((0, 1))) / scale for side in tokens]
    seen, new = (side.mean(1) for side in tokens)
    probe = LogisticRegression(max_iter=300).fit(seen, train.nouns).score(new, test.nouns)
    neighbours = [
        KNeighborsClassifier(5).fit(seen, train.attributes[:, k]).score(new, test.attributes[:, k]) for k in range(2)
    ]
    patches = LogisticRegression(max_iter=300).fit(tokens[0].flatten(0, 1), train.covered.flatten())
    overlap = jaccard_score(test.covered.flatten(), patches.predict(tokens[1].flatten(0, 1)))
    bags = [F.one_hot(side.ids, len(WORDS)).sum(1)[:, 2:-1].float() for side in (train, test)]
    said = F.normalize(new @ fit_linear_map(seen, bags[0] - bags[0].mean(0), "ridge", 10.0))
    true = F.normalize(bags[1] - bags[0].mean(0))
    best = (said @ true.T).argmax(1)
    found = (bags[1][best] == bags[1]).all(1).float().mean()
    scores = {"probe": probe, "neighbours": float(np.mean(neighbours)), "iou": overlap, "r@1": float(found)}
    scores = {name: 100 * float(value) for name, value in scores.items()}
    return {**scores, "mean": float(np.mean(list(scores.values())))}


def tiny_vit() -> ViTModel:
    """16 patches, 3 layers."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        image_size=32,
        patch_size=PATCH,
    )
    return ViTModel(config, add_pooling_layer=False)


class TextTower(nn.Module):
    """Mean of word vectors, through a hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(len(WORDS), width, padding_idx=0)
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b e"]:
        return self.project(self.words(ids))
