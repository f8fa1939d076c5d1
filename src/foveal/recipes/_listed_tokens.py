"""Pictures as patch tokens of nano-clip, which nobody trains here, and a tower that learns on them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foveal import zoo
from foveal.data import world
from foveal.data.world.draw import draw
from foveal.lab import Run
from foveal.nn.transformer import Block
from foveal.pretrain.cloc import encode_boxes
from foveal.recipes import _listed as data

PIXELS, FROZEN, WIDTH, JOINT = 96, 128, 96, 64


def frozen_tokens(run: Run, first: int, n: int) -> Float[Tensor, "n p d"]:
    """Of what ``listed(run, first, n)`` shows, drawn at 96 px: one for each of its patches."""
    drawn = world.World(data.SCENES, first + run.seed, run.size(n), ())
    return tokens_of([draw(drawn.scene(row), PIXELS).image for row in range(len(drawn))])


@torch.no_grad()
def tokens_of(images: Sequence[UInt8[np.ndarray, "96 96 3"]]) -> Float[Tensor, "n p d"]:
    """Means of 2 × 2 tokens of nano-clip."""
    nano = zoo.load("nano-clip")
    found = []
    for start in range(0, len(images), 64):
        part = list(images[start : start + 64])
        pixels = nano.processor.image_processor(images=part, return_tensors="pt")["pixel_values"]
        fine = nano.model.vision_model(pixels).last_hidden_state[:, 1:]
        grid = fine.mT.unflatten(2, (2 * data.GRID, 2 * data.GRID))
        found.append(nn.functional.avg_pool2d(grid, 2).flatten(2).mT)
    return torch.cat(found)


class Looks(nn.Module):
    """Frozen tokens, told where they are, through one layer for each number of ``heads``."""

    cells: Tensor

    def __init__(self, *heads: int) -> None:
        super().__init__()
        edges = torch.arange(data.GRID) / data.GRID
        corner = torch.stack(torch.meshgrid(edges, edges, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("cells", encode_boxes(torch.cat([corner, corner + 1 / data.GRID], 1)), persistent=False)
        self.project = nn.Sequential(nn.LayerNorm(FROZEN), nn.Linear(FROZEN, WIDTH))
        self.place = nn.Linear(self.cells.shape[1], WIDTH)
        self.layers = nn.Sequential(*(Block(WIDTH, number) for number in heads))

    def forward(self, tokens: Float[Tensor, "b p f"]) -> Float[Tensor, "b p d"]:
        return self.layers(self.project(tokens) + self.place(self.cells))
