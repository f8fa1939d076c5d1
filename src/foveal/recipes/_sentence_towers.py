"""Scenes with a vague caption, a clean one and a long description, and towers that learn from some of these texts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.nn.text import TextTransformer
from foveal.pretrain.cloc import region_recall
from foveal.pretrain.dreamlip import Captions, DreamLIPObjective, group_patches
from foveal.recipes import _listed as data
from foveal.recipes._listed_tokens import JOINT, WIDTH, Looks


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
        self.image = Looks(4)
        self.text = TextTransformer(data.LENGTH, len(data.WORDS), WIDTH, 1, 4, output_dim=JOINT)
        self.objective = DreamLIPObjective(patch_dim=WIDTH, embed_dim=JOINT, grouping_weight=grouping_weight)

    def forward(self, frozen: Float[Tensor, "b n f"], ids: Int[Tensor, "b k l"]) -> Float[Tensor, ""]:
        raw = self.image(frozen)
        texts = self.text(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        return self.objective(self.objective.patch_projection(raw).mean(1), raw, texts).loss

    def patches(self, frozen: Float[Tensor, "b n f"]) -> Float[Tensor, "b n d"]:
        return self.objective.patch_projection(self.image(frozen))

    def read(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.text(data.encode(list(texts)))


@torch.no_grad()
def scores(model: SentenceTowers, frozen: Float[Tensor, "n p f"], test: data.Listed) -> dict[str, float]:
    patches = model.patches(frozen)
    asked = {"r@1": retrieval, "miou": segmentation, "pointing": pointing}
    return {name: ask(model, patches, test) for name, ask in asked.items()}


def segmentation(model: SentenceTowers, patches: Float[Tensor, "n p d"], test: data.Listed) -> float:
    """Mean over nouns of intersection over union, of the patches that a thing covers by half."""
    names = unit_rows(model.read([f"a {noun}" for noun in data.NOUNS]))
    said = (unit_rows(patches) @ names.T).argmax(2)
    covered = test.share.amax(1) >= 0.5
    nouns = torch.tensor([[data.NOUNS.index(noun) for _, noun, _ in things] for things in test.things])
    truth = nouns.gather(1, test.share.argmax(1))
    said, truth = (F.one_hot(x[covered], len(data.NOUNS)).bool() for x in (said, truth))
    union = (said | truth).sum(0)
    return 100 * ((said & truth).sum(0) / union.clamp(min=1))[union > 0].mean().item()


def retrieval(model: SentenceTowers, patches: Float[Tensor, "n p d"], test: data.Listed) -> float:
    """Recall at 1 with short captions, the mean of both directions."""
    texts = model.read([short(things) for things in test.things])
    return 100 * region_recall(patches.mean(1), texts, (1,)).mean().item()


def pointing(model: SentenceTowers, patches: Float[Tensor, "n p d"], test: data.Listed) -> float:
    """Of the weights that a sentence gives to patches the share that lies on its thing, less the thing's area."""
    texts = [f"a {colour} {noun} is {where}" for things in test.things for colour, noun, where in things]
    sentences = model.read(texts).unflatten(0, (len(test), 3))
    _, weights = group_patches(sentences, patches)
    return 100 * ((weights * test.share).sum(2) - test.share.mean(2)).mean().item()
