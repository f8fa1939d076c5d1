"""Captioned and labelled pictures as nano-clip sees them, and batches of captions, of labels or of both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foveal import zoo
from foveal.data import world
from foveal.data.word_ids import WordIds
from foveal.data.world.phrases import article
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.pretrain.prefix_conditioning import debiased_batches, labels_to_prompts
from foveal.zoo.dual_encoder import DualEncoder

LABELLED = ("dog", "frog", "parrot", "apple", "carrot", "hamburger", "bus", "guitar", "tree", "book", "star", "heart")
OTHER = ("cat", "fish", "owl", "banana", "mushroom", "pizza", "car", "trumpet", "cactus", "clock", "ring", "arrow")
NOUNS = LABELLED + OTHER
ON_THE_WEB = world.WorldConfig(
    size=96, things=(1, 2), nouns=NOUNS, min_visible=0.8, radius=(0.22, 0.34), styles=("flat", "cartoon", "night")
)
CLEAN = world.WorldConfig(size=96, nouns=NOUNS, radius=(0.3, 0.34), tint=0.0, backgrounds=("plain",))
TESTS = {
    "new": (OTHER, ON_THE_WEB),
    "shift": (LABELLED, replace(CLEAN, styles=("sepia", "blur"), backgrounds=("place",))),
    "seen": (LABELLED, CLEAN),
}
"""Kinds, and how they are drawn."""
BATCH = 64


def prompt(template: str, noun: str) -> str:
    return template.format(f"{article(noun)} {noun}")


TEMPLATES: tuple[Callable[[str], str], ...] = tuple(partial(prompt, template) for template in world.TEMPLATES)


@dataclass(frozen=True)
class Union:
    """Captioned pictures, then labelled ones whose labels are sentences, as many of each."""

    words: WordIds
    images: Float[Tensor, "n 128"]
    ids: Int[Tensor, "n l"]
    labels: Int[Tensor, " n"]


def features(images: UInt8[np.ndarray, "n 96 96 3"]) -> Float[Tensor, "n d"]:
    """What nano-clip's image tower, which nobody trains here, makes of pictures."""
    nano = zoo.load("nano-clip")
    return unit_rows(DualEncoder(nano.model, nano.processor, 64).image_features(list(images)))


def union(run: Run, each: int) -> Union:
    web = world.pairs(run.seed, run.size(each), ON_THE_WEB)
    captions = world.swap_captions(web.captions, 0.2, run.seed).captions
    clean = world.classify(50_000 + run.seed, run.size(each), LABELLED, CLEAN)
    labels = torch.from_numpy(clean.labels).long()
    said = labels_to_prompts(labels, LABELLED, TEMPLATES, run.generator("templates"))
    words = WordIds.of([*captions, *said, " ".join(NOUNS)])
    images = torch.cat([features(web.images), features(clean.images)])
    ids = torch.from_numpy(words.encode([*captions, *said]))
    return Union(words, images, ids, torch.cat([torch.full_like(labels, -1), labels]))


class Batches:
    """Ready batches: of captions alone ("captions"), half and half ("mixed"), or of one source each ("debiased").

    ``prefix``: "none" gives all the caption prefix, "source" their own, "random" one that is drawn for each batch.
    """

    def __init__(self, run: Run, data: Union, order: str, prefix: str, steps: int) -> None:
        self.run, self.data, self.order, self.prefix, self.steps = run, data, order, prefix, steps

    def rows(self, rng: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
        each = len(self.data.ids) // 2
        while True:
            if self.order == "mixed":
                halves = (debiased_batches([each], BATCH // 2, rng) for _ in range(2))
                yield from (torch.cat([a, each + b]) for (_, a), (_, b) in zip(*halves, strict=True))
            else:
                sizes = [each] if self.order == "captions" else [each, each]
                yield from (source * each + batch for source, batch in debiased_batches(sizes, BATCH, rng))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rng, each = self.run.generator("batches"), len(self.data.ids) // 2
        for rows in islice(self.rows(rng), self.steps):
            sources = (rows >= each).long()
            if self.prefix == "none":
                sources = torch.zeros_like(sources)
            elif self.prefix == "random":
                sources = torch.randint(2, (1,), generator=rng).expand(len(rows))
            yield self.data.images[rows], self.data.ids[rows], self.data.labels[rows], sources
