"""Towers whose regions are averages of patches, for comparison with CLOC's, and what regions and images are asked."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.data.record import Region, Sample
from foveal.lab import Run
from foveal.nn.text import TextTransformer
from foveal.nn.transformer import Block
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.base import ContrastiveOutput, LogitScale
from foveal.pretrain.clip import clip_loss
from foveal.pretrain.cloc import region_batch, region_recall, region_text_contrastive
from foveal.pretrain.cloc_vesl import DetectorNoise, NoisyRegions, annotate_regions
from foveal.recipes import _listed as data

WIDTH, JOINT, REGIONS = 96, 64, 3


class Eyes(nn.Module):
    """Patch tokens and their mean; ``extra``: one more layer, as large as CLOC's Prompter."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.vision = VisionTransformer(data.SIZE, data.PATCH, WIDTH, 3, 4)
        self.layer = Block(WIDTH, 1) if extra else nn.Identity()

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        tokens = self.layer(self.vision.tokens(images)[:, 1:])
        return tokens, tokens.mean(1)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = TextTransformer(data.LENGTH, len(data.WORDS), WIDTH, 2, 4, output_dim=JOINT)

    def forward(self, ids: Int[Tensor, "n l"], mask: Tensor) -> Float[Tensor, "n e"]:
        return self.text(ids)  # causal, read at the end token: padding does not matter


class RoiTowers(nn.Module):
    """CLIP, with the texts of regions as further captions or, with ``boxes``, as texts of the patches in them."""

    def __init__(self, boxes: bool) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.boxes = Eyes(extra=True), Reader(), boxes
        self.image_projection = nn.Linear(WIDTH, JOINT)
        self.region_projection = nn.Linear(WIDTH, JOINT) if boxes else self.image_projection
        self.logit_scale, self.region_scale = LogitScale(), LogitScale()

    def forward(self, images: Tensor, **batch: Tensor) -> ContrastiveOutput:
        tokens, pooled = self.image_encoder(images)
        image = self.image_projection(pooled)
        caption = self.text_encoder(batch["caption_ids"], batch["caption_mask"])
        text = self.text_encoder(batch["region_ids"].flatten(0, 1), batch["region_mask"].flatten(0, 1))
        scale, valid = self.region_scale(), batch["valid"]
        if self.boxes:
            region = self.region_features(tokens, batch["boxes"]).flatten(0, 1)
            extra = region_text_contrastive(region, text, scale, valid.flatten()).loss
        else:
            texts = text.unflatten(0, valid.shape)
            slots = [region_text_contrastive(image, texts[:, k], scale, valid[:, k]).loss for k in range(REGIONS)]
            extra = torch.stack(slots).mean()
        out = clip_loss(image, caption, self.logit_scale())
        return replace(out, loss=out.loss + extra)

    def region_features(self, tokens: Float[Tensor, "b n d"], boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m e"]:
        """The mean of the patches, each by how much of it is in the box."""
        edges = torch.arange(data.GRID + 1) / data.GRID
        x, y = (
            (boxes[..., far, None].minimum(edges[1:]) - boxes[..., near, None].maximum(edges[:-1])).clamp(min=0)
            for near, far in ((0, 2), (1, 3))
        )
        inside = (y[..., :, None] * x[..., None, :]).flatten(2)
        return self.region_projection(inside / inside.sum(-1, keepdim=True).clamp(min=1e-6) @ tokens)

    def clamp_(self) -> None:
        self.logit_scale.clamp_()
        self.region_scale.clamp_()


def labelled(run: Run, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels and batch of ``n`` scenes as VESL labels them; those that it drops are missing."""
    scenes, rng, samples, kept = data.listed(run, 0, n), run.rng("detector"), [], []
    for row, things in enumerate(scenes.things):
        boxes = (scenes.boxes[row] * data.SIZE).tolist()
        regions = [Region(tuple(box), caption=f"{c} {noun}") for box, (c, noun, _) in zip(boxes, things, strict=True)]
        sample = Sample(str(row), (scenes.images[row],), regions=tuple(regions))
        source = NoisyRegions(sample, DetectorNoise(), rng)
        found = annotate_regions(sample, source, source, max_regions=REGIONS)
        if found is not None:
            samples.append(found)
            kept.append(row)
    return scenes.pixels[kept], region_batch(samples, tokenize, REGIONS)


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = data.encode(texts)
    return ids, ids > 0


@torch.no_grad()
def scores(run: Run, model: Any, test: data.Listed) -> dict[str, float]:
    """With true boxes, and with boxes whose edges are off by a tenth of their sides."""
    tokens, pooled = model.image_encoder(test.pixels)
    sides = (test.boxes[..., 2:] - test.boxes[..., :2]).repeat(1, 1, 2)
    moved = test.boxes + 0.1 * sides * torch.randn(test.boxes.shape, generator=run.generator("jitter"))
    moved = moved.unflatten(-1, (2, 2)).sort(-2).values.flatten(-2).clamp(0, 1)
    region, jittered = (model.region_features(tokens, boxes).flatten(0, 1) for boxes in (test.boxes, moved))
    classes = model.text_encoder(*tokenize([f"{c} {noun}" for noun in data.NOUNS for c in data.COLOURS]))
    classes = nn.functional.normalize(classes, dim=-1).unflatten(0, (len(data.NOUNS), -1)).mean(1)
    truth = torch.tensor([data.NOUNS.index(noun) for things in test.things for _, noun, _ in things])
    named = [100 * ((x @ classes.T).argmax(1) == truth).float().mean().item() for x in (region, jittered)]
    texts = [f"{c} {noun}" for things in test.things for c, noun, _ in things]
    captions = [", ".join(f"{c} {noun}" for c, noun, _ in things) for things in test.things]
    image = model.image_projection(pooled)
    found = {"region_top1": named[0], "jitter_loss": named[0] - named[1]}
    found["region_r@1"] = 100 * region_recall(region, model.text_encoder(*tokenize(texts)), (1,))[0, 0].item()
    return found | {"r@1": 100 * region_recall(image, model.text_encoder(*tokenize(captions)), (1,))[0, 0].item()}
