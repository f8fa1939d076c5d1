"""One set of pictures with everything that any of the objectives reads, small towers of CLIP's own class, and noise.

Every picture of two shapes has a caption, a description in sentences, and regions as CLOC's pipeline finds them (see
`DetectorNoise`); every sixth picture shows one shape and has a label instead. With ``noise`` that share of the pictures
gets all texts and regions of another one.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from foveal.data import world
from foveal.data.record import Region, Sample
from foveal.data.transforms import to_tensor
from foveal.lab import Run
from foveal.pretrain.cloc_vesl import DetectorNoise, NoisyRegions, annotate_regions
from foveal.recipes import _listed as data
from foveal.recipes._sentence_towers import short
from foveal.zoo.nano.clip import POSITION_SIZE, waves

CAPTIONED, LABELLED, WIDTH, READS = 2500, 500, 64, 12
NOUNS, COLOURS = data.NOUNS[:6], data.COLOURS[:3]
"""So few colours that they alone do not tell the captions of a batch apart."""
SCENES = replace(data.SCENES, things=(2, 2), nouns=NOUNS, colours=COLOURS, radius=(0.2, 0.28))
NAMED = NOUNS[::2]
"""Shapes that occur with a label; the others are known from captions alone."""
Pairs = tuple[Float[Tensor, "n 3 s s"], list[Sample]]


def training(run: Run, noise: float) -> Pairs:
    """Captioned pictures, then labelled ones."""
    scenes, rng, samples = run.shared(laid_out, 0, CAPTIONED), run.rng("detector"), []
    for row, things in enumerate(scenes.things):
        boxes = (scenes.boxes[row] * data.SIZE).tolist()
        regions = [Region(tuple(box), caption=f"{c} {noun}") for box, (c, noun, _) in zip(boxes, things, strict=True)]
        sample = Sample(str(row), (scenes.images[row],), regions=tuple(regions))
        source = NoisyRegions(sample, DetectorNoise(), rng)
        found = annotate_regions(sample, source, source)
        texts = (short(things), described(things, scenes.grounds[row]))
        samples.append(sample.with_(captions=texts, regions=() if found is None else found.regions))
    single = world.classify(50_000 + run.seed, run.size(LABELLED), NAMED, SCENES)
    labelled = [
        Sample(f"label {i}", (image,), labels=(NAMED[k],))
        for i, (image, k) in enumerate(zip(single.images, single.labels, strict=True))
    ]
    pixels = torch.cat([scenes.pixels, ready(to_tensor(single.images))])
    return pixels, [*swapped(run, samples, noise), *swapped(run, labelled, noise)]


def laid_out(run: Run, first: int, n: int) -> data.Listed:
    """Scenes of world ``first`` + seed."""
    scenes = data.listed(run, first, n, SCENES)
    return replace(scenes, pixels=ready(scenes.pixels))


def ready(pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
    """As the towers read them."""
    return (pixels - 0.5) / 0.25


def swapped(run: Run, samples: list[Sample], noise: float) -> list[Sample]:
    """That share of the samples with what is said of the next one that is chosen."""
    chosen = run.rng("noise").permutation(len(samples))[: round(noise * len(samples))]
    found = list(samples)
    for place, other in zip(chosen, (*chosen[1:], *chosen[:1]), strict=True):
        said = samples[other]
        found[place] = samples[place].with_(captions=said.captions, labels=said.labels, regions=said.regions)
    return found


def described(things: list[data.Thing], ground: str) -> str:
    """A sentence for each thing and one for the ground: more words than the text tower reads."""
    return ". ".join([*(f"a {c} {noun} is {where}" for c, noun, where in things), f"the background is {ground}"])


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Cut where the text tower ends, as CLIP's tokenizer does."""
    ids = torch.from_numpy(
        data.WORDS.encode([" ".join(text.replace(".", " ").split()[: READS - 1]) for text in texts], READS)
    )
    return ids, (ids > 0).long()


def tiny_clip() -> CLIPModel:
    """36 patches, 3 layers, 2 for texts."""
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    vision = {**common, "num_hidden_layers": 3, "image_size": data.SIZE, "patch_size": data.PATCH}
    words = {"vocab_size": len(data.WORDS), "eos_token_id": data.WORDS.end, "pad_token_id": 0, "bos_token_id": 0}
    text = {**common, **words, "num_hidden_layers": 2, "max_position_embeddings": READS}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    with torch.no_grad():  # from positions that say nothing, a few hundred steps lead nowhere
        model.vision_model.embeddings.position_embedding.weight[1:] = POSITION_SIZE * waves((data.GRID,) * 2, WIDTH)
    return model
