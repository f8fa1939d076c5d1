"""A dual encoder of 32 px whose text tower takes a prefix, and batches of captions, of labels or of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.data.world.phrases import article
from foveal.lab import Run
from foveal.nn.attention import padding_mask
from foveal.nn.transformer import Transformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.prefix_conditioning import (
    CAPTION,
    PrefixConditioningObjective,
    PrefixTextEncoder,
    debiased_batches,
    labels_to_prompts,
)

LABELLED = ("dog", "frog", "parrot", "apple", "carrot", "hamburger", "bus", "guitar", "tree", "book", "star", "heart")
OTHER = ("cat", "fish", "owl", "banana", "mushroom", "pizza", "car", "trumpet", "cactus", "clock", "ring", "arrow")
NOUNS = LABELLED + OTHER
ON_THE_WEB = world.WorldConfig(
    size=32, things=(1, 2), nouns=NOUNS, min_visible=0.8, radius=(0.22, 0.34), styles=("flat", "cartoon", "night")
)
CLEAN = world.WorldConfig(size=32, nouns=NOUNS, radius=(0.3, 0.34), tint=0.0, backgrounds=("plain",))
TESTS = {
    "new": (OTHER, ON_THE_WEB),
    "shift": (LABELLED, replace(CLEAN, styles=("sepia", "blur"), backgrounds=("place",))),
    "seen": (LABELLED, CLEAN),
}
"""Kinds, and how they are drawn."""
BATCH, LONGEST, WIDTH = 64, 40, 64


def prompt(template: str, noun: str) -> str:
    return template.format(f"{article(noun)} {noun}")


TEMPLATES: tuple[Callable[[str], str], ...] = tuple(partial(prompt, template) for template in world.TEMPLATES)


class Body(nn.Module):
    """A causal transformer with learned positions, the prefix's included."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.01 * torch.randn(LONGEST + 1, WIDTH))
        self.layers, self.norm = Transformer(WIDTH, 2, 4), nn.LayerNorm(WIDTH)

    def forward(self, embeddings: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        x = embeddings + self.positions[: embeddings.shape[1]]
        return self.norm(self.layers(x, mask=padding_mask(mask), causal=True))


class PrefixTowers(nn.Module):
    """Image tower, text tower, objective; calling it gives the loss of a batch."""

    def __init__(self, words: WordIds, objective: str) -> None:
        super().__init__()
        self.words = words
        self.image = VisionTransformer(32, 8, WIDTH, 4, 4, output_dim=WIDTH)
        embedding = nn.Embedding(len(words), WIDTH)
        nn.init.normal_(embedding.weight, std=0.02)
        self.text = PrefixTextEncoder(embedding, Body(), projection=nn.Linear(WIDTH, WIDTH, bias=False))
        self.objective = PrefixConditioningObjective(objective)

    def forward(
        self,
        pixels: Float[Tensor, "b 3 s s"],
        ids: Int[Tensor, "b l"],
        labels: Int[Tensor, " b"],
        sources: Int[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        return self.objective(self.image(pixels), self.text(ids, ids > 0, sources), labels).loss

    def encode(self, texts: Sequence[str], source: int = CAPTION) -> Float[Tensor, "n d"]:
        ids = torch.from_numpy(self.words.encode(texts))
        return self.text(ids, ids > 0, source)


@dataclass(frozen=True)
class Union:
    """Captioned pictures, then labelled ones whose labels are sentences, as many of each."""

    words: WordIds
    pixels: Float[Tensor, "n 3 32 32"]
    ids: Int[Tensor, "n l"]
    labels: Int[Tensor, " n"]


def union(run: Run, each: int) -> Union:
    web = world.pairs(run.seed, run.size(each), ON_THE_WEB)
    captions = world.swap_captions(web.captions, 0.2, run.seed).captions
    clean = world.classify(50_000 + run.seed, run.size(each), LABELLED, CLEAN)
    labels = torch.from_numpy(clean.labels).long()
    said = labels_to_prompts(labels, LABELLED, TEMPLATES, run.generator("templates"))
    words = WordIds.of([*captions, *said, " ".join(NOUNS)])
    pixels = torch.cat([to_tensor(web.images), to_tensor(clean.images)])
    ids = torch.from_numpy(words.encode([*captions, *said]))
    return Union(words, pixels, ids, torch.cat([torch.full_like(labels, -1), labels]))


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
            yield self.data.pixels[rows], self.data.ids[rows], self.data.labels[rows], sources
