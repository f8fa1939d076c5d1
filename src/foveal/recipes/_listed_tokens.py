"""The scenes of `_listed` as patch tokens of nano-clip, which nobody trains here, and a tower that learns on them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal import zoo
from foveal.data import world
from foveal.data.world.draw import draw
from foveal.lab import Run
from foveal.nn.transformer import Block
from foveal.pretrain.cloc import encode_boxes
from foveal.recipes import _listed as data

PIXELS, FROZEN, WIDTH, JOINT = 96, 128, 96, 64


@torch.no_grad()
def frozen_tokens(run: Run, first: int, n: int) -> Float[Tensor, "n p d"]:
    """Of what ``listed(run, first, n)`` shows, drawn at 96 px: means of 2 × 2 tokens, one for each of its patches."""
    drawn = world.World(data.SCENES, first + run.seed, run.size(n), ())
    nano = zoo.load("nano-clip")
    found = []
    for rows in torch.arange(len(drawn)).split(64):
        pictures = [draw(drawn.scene(int(row)), PIXELS).image for row in rows]
        pixels = nano.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
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
