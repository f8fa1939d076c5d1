"""Twenty classes in pictures of a look that nano-clip was not trained on, and SmolLM2 as the writer of templates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal import llm, zoo
from foveal.adapt.glov import template_weights, top1_accuracy
from foveal.data import world
from foveal.lab import Run
from foveal.llm import HFLM
from foveal.zoo.dual_encoder import DualEncoder

NOUNS = (
    *("tiger", "giraffe", "mouse", "octopus", "bee", "butterfly", "banana", "lemon", "hamburger", "taco"),
    *("bagel", "egg", "bus", "boat", "house", "tree", "leaf", "axe", "telephone", "envelope"),
)
LOOK = world.WorldConfig(size=96, styles=("noise",))


@dataclass(frozen=True)
class Task:
    """Features of a few labelled pictures to search on, and of others to test on."""

    encoder: DualEncoder
    shots: Float[Tensor, "n d"]
    shot_labels: Int[Tensor, " n"]
    images: Float[Tensor, "m d"]
    labels: Int[Tensor, " m"]

    def fitness(self, *templates: str) -> float:
        """Accuracy in percent on the shots; the blank of a template is "<category>" or "{}"."""
        return top1_accuracy(self.shots, self.shot_labels, self._weights(templates))

    def test(self, *templates: str) -> float:
        return top1_accuracy(self.images, self.labels, self._weights(templates))

    def _weights(self, templates: Sequence[str]) -> Float[Tensor, "k d"]:
        filled = [template.replace("<category>", "{}") for template in templates]
        return template_weights(self.encoder.text_features, NOUNS, filled, placeholder="{}")


def task(run: Run, shots: int, n: int) -> Task:
    """``shots`` pictures of each class, and ``n`` to test on."""
    nano = zoo.load("nano-clip")
    encoder = DualEncoder(nano.model, nano.processor, 64)
    few = world.classify(30_000 + run.seed, shots * len(NOUNS), NOUNS, LOOK)
    many = world.classify(40_000 + run.seed, run.size(n), NOUNS, LOOK)
    features = [encoder.image_features(part.images) for part in (few, many)]
    return Task(encoder, features[0], torch.from_numpy(few.labels), features[1], torch.from_numpy(many.labels))


@cache
def smollm2() -> HFLM:
    """The writer, loaded once for all arms."""
    return llm.smollm2()
