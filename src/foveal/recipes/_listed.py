"""Scenes of three coloured shapes at 48 px whose texts list them, and which of the 36 patches show each."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.data.world.draw import draw
from foveal.lab import Run

NOUNS = ("star", "heart", "circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIZE, PATCH, GRID = 48, 8, 6
SCENES = world.WorldConfig(
    size=SIZE, things=(3, 3), nouns=NOUNS, colours=COLOURS, textures=("plain",), repeats=0.0, companions=0.0,
    min_visible=0.8, depth=(2.0, 2.5), backgrounds=("plain",)
)  # fmt: skip
WORDS = WordIds.of([" ".join(("a and is the of picture background", *NOUNS, *world.COLOURS, *ROWS, *COLUMNS))])
LENGTH = 16
EDGES = torch.arange(GRID + 1) / GRID
CELLS = torch.stack(
    [torch.stack([EDGES[x], EDGES[y], EDGES[x + 1], EDGES[y + 1]]) for y in range(GRID) for x in range(GRID)]
)
"""The patches as boxes, in shares of the picture."""

Thing = tuple[str, str, str]
"""Colour, noun, and place in two words."""


@dataclass(frozen=True)
class Listed:
    """``n`` scenes. ``share``: how much of every patch each thing covers; ``boxes``: in shares of the picture."""

    images: np.ndarray
    pixels: Float[Tensor, "n 3 s s"]
    things: list[list[Thing]]
    grounds: list[str]
    share: Float[Tensor, "n 3 p"]
    boxes: Float[Tensor, "n 3 4"]

    def __len__(self) -> int:
        return len(self.things)


def listed(run: Run, first: int, n: int, config: world.WorldConfig = SCENES) -> Listed:
    """Scenes of world ``first`` + seed."""
    drawn = world.World(config, first + run.seed, run.size(n), ())
    scenes = [drawn.scene(i) for i in range(len(drawn))]
    pictures = [draw(scene, SIZE) for scene in scenes]
    shares = []
    for picture in pictures:
        masks = picture.instance == np.arange(1, len(picture.boxes) + 1)[:, None, None]
        shares.append(masks.reshape(-1, GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(-1, GRID**2))
    images = np.stack([picture.image for picture in pictures])
    things = [[(thing.colour or "", thing.noun, place(thing)) for thing in scene.things] for scene in scenes]
    share = torch.tensor(np.array(shares), dtype=torch.float32)
    boxes = torch.tensor([picture.boxes for picture in pictures]) / SIZE
    return Listed(images, to_tensor(images), things, [scene.background.name for scene in scenes], share, boxes)


def place(thing: world.Thing) -> str:
    """One of nine cells."""
    return f"{ROWS[min(int(3 * thing.y), 2)]} {COLUMNS[min(int(3 * thing.x), 2)]}"


def full_caption(things: list[Thing]) -> str:
    """ "red star top left and …": word 5 k is the colour of thing k, word 5 k + 1 its noun."""
    return " and ".join(f"{colour} {noun} {where}" for colour, noun, where in things)


def encode(texts: list[str]) -> Int[Tensor, "n l"]:
    return torch.from_numpy(WORDS.encode(texts, LENGTH))


def shuffled(run: Run, ids: Int[Tensor, "n l"]) -> Int[Tensor, "n l"]:
    """Texts of other images."""
    return ids[torch.randperm(len(ids), generator=run.generator("shuffle"))]
