"""A small ViT that knows shapes and colours, and a task on pictures of another look to fine-tune it to."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import ViTConfig, ViTModel

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.lab import Run
from foveal.train import FitConfig, fit

WIDTH, QUERY_VALUE = 96, ("q_proj", "v_proj", "query", "value")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
LOOK = {"size": 32, "things": (1, 1), "sprites": 0.0, "nouns": SHAPES, "colours": COLOURS, "textures": TEXTURES}
FIRST = world.WorldConfig(**LOOK, sizes=("large",), depth=(2.2, 2.6), backgrounds=("plain",))
STYLE = "sepia"
STEPS, LABELS = 80, 400
"""Of fine-tuning, and pictures to train on."""
Prepare = Callable[[Any], object]
"""Replaces layers of the model and freezes what is not to be trained; the head stays trainable."""


class Classifier(nn.Module):
    """A linear head on the class token."""

    def __init__(self, vision: nn.Module, classes: int) -> None:
        super().__init__()
        self.vision, self.head = vision, nn.Linear(WIDTH, classes)

    def forward(self, pixels: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b k"]:
        return self.head(self.vision(pixel_values=pixels).last_hidden_state[:, 0])


def pictures(run: Run, first: int, n: int, style: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, classes of shape and colour, and textures."""
    drawn = world.pairs(first + run.seed, run.size(n), replace(FIRST, styles=(style,)))
    things = [scene.things[0] for scene in drawn.scenes]
    kinds = [SHAPES.index(t.noun) * len(COLOURS) + COLOURS.index(t.colour or "") for t in things]
    textures = [TEXTURES.index(thing.texture) for thing in things]
    return 2 * to_tensor(drawn.images) - 1, torch.tensor(kinds), torch.tensor(textures)


def loss(model: Classifier, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    return F.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: Classifier, data: tuple[Tensor, ...]) -> float:
    """In percent, of pixels and labels."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in data[0].split(250)])
    return 100 * (found == data[1]).float().mean().item()


def pretrained(run: Run) -> nn.Module:
    """A ViT trained on shapes and colours."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 4 * WIDTH,
    }
    model = Classifier(ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False), 42)
    pixels, kinds, _ = pictures(run, 0, 4000, "flat")
    fit(model, TensorDataset(pixels, kinds), steps=run.steps(350), loss=loss, config=FitConfig(batch_size=48), on=run)
    return model.vision


def task(run: Run) -> list[tuple[Tensor, Tensor]]:
    """Pixels and textures to train on, to choose the learning rate on, and to test on."""
    return [pictures(run, first, n, STYLE)[::2] for first, n in ((10_000, LABELS), (20_000, 300), (30_000, 1000))]


def fine_tuned(run: Run, prepare: Prepare, rates: Sequence[float]) -> dict[str, float]:
    """Test accuracy at the rate that is best in validation, and what it cost in numbers (without the head)."""
    train, validation, test = run.shared(task)
    found: list[tuple[float, Classifier]] = []
    for rate in rates:
        model = run.build(Classifier, copy.deepcopy(run.shared(pretrained)), len(TEXTURES)).eval()
        with torch.no_grad():
            before = model(test[0][:100])
            run.build(prepare, model)
            moved = float((model(test[0][:100]) - before).abs().max())
        config = FitConfig(lr=rate, batch_size=32)
        fit(model, TensorDataset(*train), steps=run.steps(STEPS), loss=loss, config=config, on=run)
        found.append((accuracy(model, validation), model))
    best = max(found, key=lambda one: one[0])[1]
    run.cost(best)
    trained = sum(p.numel() for n, p in best.named_parameters() if p.requires_grad and not n.startswith("head."))
    return {"accuracy": accuracy(best, test), "trained": float(trained), "moved at step 0": moved}
