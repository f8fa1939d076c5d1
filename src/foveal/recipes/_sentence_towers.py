"""Scenes with a vague caption, a clean one and a long description, and towers that learn from some of these texts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.cloc import region_recall
from foveal.pretrain.dreamlip import Captions, DreamLIPObjective, group_patches
from foveal.recipes import _listed as data


def captions(run: Run, scenes: data.Listed) -> list[Captions]:
    """Raw: nouns less three in ten; short: with colours; long: a sentence for each thing and one more."""
    rng, found = run.rng("captions"), []
    for things, ground in zip(scenes.things, scenes.grounds, strict=True):
        said = [noun for _, noun, _ in things if rng.random() < 0.7] or [things[0][1]]
        sentences = [f"a {colour} {noun} is {where}" for colour, noun, where in things]
        long = ". ".join([*sentences, f"the background is {ground}"])
        found.append(Captions(f"picture of {' and '.join(said)}", (short(things),), long))
    return found


def short(things: list[data.Thing]) -> str:
    return " and ".join(f"a {colour} {noun}" for colour, noun, _ in things)


class SentenceTowers(nn.Module):
    """The image's vector is the mean of its patches after the projection that grouping uses too."""

    def __init__(self, grouping_weight: float) -> None:
        super().__init__()
        self.image = VisionTransformer(data.SIZE, data.PATCH, 96, 3, 4)
        self.text = TextTransformer(data.LENGTH, len(data.WORDS), 96, 2, 4, output_dim=64)
        self.objective = DreamLIPObjective(patch_dim=96, embed_dim=64, grouping_weight=grouping_weight)

    def forward(self, pixels: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b k l"]) -> Float[Tensor, ""]:
        raw = self.image.tokens(pixels)[:, 1:]
        texts = self.text(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        return self.objective(self.objective.patch_projection(raw).mean(1), raw, texts).loss

    def patches(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        return self.objective.patch_projection(self.image.tokens(pixels)[:, 1:])

    def read(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.text(data.encode(list(texts)))


@torch.no_grad()
def segmentation(model: SentenceTowers, test: data.Listed) -> float:
    """Mean over nouns of intersection over union, of the patches that a thing covers by half."""
    names = unit_rows(model.read([f"a {noun}" for noun in data.NOUNS]))
    said = (unit_rows(model.patches(test.pixels)) @ names.T).argmax(2)
    covered = test.share.amax(1) >= 0.5
    nouns = torch.tensor([[data.NOUNS.index(noun) for _, noun, _ in things] for things in test.things])
    truth = nouns.gather(1, test.share.argmax(1))
    said, truth = (F.one_hot(x[covered], len(data.NOUNS)).bool() for x in (said, truth))
    union = (said | truth).sum(0)
    return 100 * ((said & truth).sum(0) / union.clamp(min=1))[union > 0].mean().item()


@torch.no_grad()
def retrieval(model: SentenceTowers, test: data.Listed) -> float:
    """Recall at 1 with short captions, the mean of both directions."""
    images, texts = model.patches(test.pixels).mean(1), model.read([short(things) for things in test.things])
    return 100 * region_recall(images, texts, (1,)).mean().item()


@torch.no_grad()
def pointing(model: SentenceTowers, test: data.Listed) -> float:
    """Of the weights that a sentence gives to patches the share that lies on its thing, less the thing's area."""
    texts = [f"a {colour} {noun} is {where}" for things in test.things for colour, noun, where in things]
    sentences = model.read(texts).unflatten(0, (len(test), 3))
    _, weights = group_patches(sentences, model.patches(test.pixels))
    return 100 * ((weights * test.share).sum(2) - test.share.mean(2)).mean().item()
