"""Scenes as VESL labels them, and what the regions and images of any towers are asked."""

from typing import Any

import torch
from torch import Tensor, nn

from foveal.data.record import Region, Sample
from foveal.lab import Run
from foveal.pretrain.cloc import region_batch, region_recall
from foveal.pretrain.cloc_vesl import DetectorNoise, NoisyRegions, annotate_regions
from foveal.recipes import _listed as data
from foveal.recipes._listed_tokens import frozen_tokens
from foveal.recipes._region_towers import LENGTH, REGIONS


def labelled(run: Run, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Frozen tokens and batch of ``n`` scenes as VESL labels them; those that it drops are missing."""
    scenes, rng, samples, kept = run.shared(data.listed, 0, n), run.rng("detector"), [], []
    for row, things in enumerate(scenes.things):
        boxes = (scenes.boxes[row] * data.SIZE).tolist()
        regions = [Region(tuple(box), caption=f"{c} {noun}") for box, (c, noun, _) in zip(boxes, things, strict=True)]
        sample = Sample(str(row), (scenes.images[row],), regions=tuple(regions))
        source = NoisyRegions(sample, DetectorNoise(), rng)
        found = annotate_regions(sample, source, source, max_regions=REGIONS)
        if found is not None:
            samples.append(found)
            kept.append(row)
    return run.shared(frozen_tokens, 0, n)[kept], region_batch(samples, tokenize, REGIONS)


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(data.WORDS.encode(texts, LENGTH))
    return ids, ids > 0


@torch.no_grad()
def scores(run: Run, model: Any, n: int) -> dict[str, float]:
    """Of ``n`` scenes, with true boxes and with boxes whose edges are off by a tenth of their sides."""
    test = run.shared(data.listed, 10_000, n)
    tokens, pooled = model.image_encoder(run.shared(frozen_tokens, 10_000, n))
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
