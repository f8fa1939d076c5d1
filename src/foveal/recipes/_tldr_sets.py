"""A redundant, noisy, long-tailed set of scenes, and what TL;DR needs to know of it: codes, scores and new captions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import TensorDataset

from foveal.curate.tldr import Choice, CodebookCaptioner, caption_ids, choose, top_by_score
from foveal.curate.tldr_train import Reseeding, small_captioner
from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds, split
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.recipes._caption_towers import LONGEST, CaptionTowers
from foveal.train import FitConfig, fit
from foveal.zoo.nano.bpe import clip_tokenizer

COMMON = ("dog", "apple", "car", "tree", "fish", "clock", "frog", "pizza")
RARE = ("parrot", "bus", "carrot", "guitar", "owl", "banana", "book", "cactus")
SCENES = world.WorldConfig(
    size=32, things=(1, 2), nouns=COMMON + RARE, imbalance=1.0, companions=0.0, repeats=0.0, min_visible=0.8,
    radius=(0.22, 0.34), tint=0.0,
)  # fmt: skip
SIZE, CLEAN, CODES = 3000, 500, 128


class SmallTowers(CaptionTowers):
    """A third of the size of CLIP's recipe, because many of them are trained."""

    def __init__(self, words: WordIds) -> None:
        super().__init__(words, contrastive=True)
        self.image = VisionTransformer(32, 8, 64, 3, 4, output_dim=64)
        self.text = TextTransformer(LONGEST, len(words), 64, 1, 4, output_dim=64)


@dataclass(frozen=True)
class Dirty:
    """n pairs: half of the pictures are near-duplicates (``copy``), three in ten captions another's (``swapped``)."""

    scenes: list[world.Scene]
    captions: list[str]
    copy: Bool[np.ndarray, " n"]
    swapped: Bool[np.ndarray, " n"]
    pixels: Float[Tensor, "n 3 32 32"]


def dirty(run: Run) -> Dirty:
    laid = world.World(SCENES, run.seed, run.size(SIZE), extras=())
    scenes, source = world.near_duplicates([laid.scene(i) for i in range(len(laid))], 0.5, run.seed)
    true = [world.short_caption(scene, world.word_rng(run.seed, i, "caption")) for i, scene in enumerate(scenes)]
    spoilt = world.swap_captions(true, 0.3, run.seed)
    copy = source != np.arange(len(source))
    return Dirty(scenes, spoilt.captions, copy, spoilt.changed, to_tensor(world.images_of(scenes, SCENES)))


def clean(run: Run) -> world.Pairs:
    return world.pairs(30_000 + run.seed, run.size(CLEAN), SCENES)


def words(texts: Sequence[str]) -> list[str]:
    """Texts that the towers can hold: "original; generated" may be too long for them."""
    return [" ".join(split(text)[: LONGEST - 1]) for text in texts]


def towers(run: Run, pixels: Float[Tensor, "n 3 32 32"], captions: Sequence[str], steps: int) -> SmallTowers:
    """CLIP from scratch."""
    known = WordIds.of([*captions, " ".join(COMMON + RARE), *world.TEMPLATES, "a an"])
    model = run.build(SmallTowers, known)
    ids = torch.from_numpy(known.encode(words(captions), LONGEST))
    config = FitConfig(lr=1e-3, batch_size=128, after_step=CaptionTowers.clamp)
    fit(model, TensorDataset(pixels, ids), steps=run.steps(steps), config=config, on=run)
    return model


def matches(run: Run) -> Float[Tensor, " n"]:
    """How well picture and caption match, says a dual encoder that saw the clean pairs only."""
    pairs, data = run.shared(clean), run.shared(dirty)
    judge = towers(run, to_tensor(pairs.images), [*pairs.captions], 100)
    with torch.no_grad():
        return (unit_rows(judge.image(data.pixels)) * unit_rows(judge.encode(words(data.captions)))).sum(1)


def captioner(run: Run) -> tuple[Int[Tensor, "n t"], Callable[[Sequence[int]], list[str]]]:
    """Codes of all pictures; and who writes captions, after some more steps on the clean pairs."""
    data, pairs = run.shared(dirty), run.shared(clean)
    tokenizer = clip_tokenizer([*data.captions, *pairs.captions], 900, LONGEST)
    model = run.build(small_captioner, tokenizer, image_size=32, width=96, layers=3, num_codes=CODES)
    _teach(run, model, tokenizer, data.pixels, data.captions, 160)
    codes = torch.cat([model.codes(2 * part - 1) for part in data.pixels.split(500)])
    writer = deepcopy(model)
    _teach(run, writer, tokenizer, to_tensor(pairs.images), pairs.captions, 80)

    def describe(rows: Sequence[int]) -> list[str]:
        parts = data.pixels[list(rows)].split(250)
        return [text for part in parts for text in writer.generate(2 * part - 1, tokenizer, prompt="", min_length=4)]

    return codes, describe


def descriptions(run: Run, rows: tuple[int, ...]) -> list[str]:
    """New captions of these pictures."""
    return run.shared(captioner)[1](rows)


def left(run: Run, by: str, kind: str) -> list[int]:
    """Which pairs a method leaves."""
    n = len(run.shared(dirty).captions)
    if by == "all":
        return list(range(n))
    if by == "random":
        return sorted(torch.randperm(n, generator=run.generator("random"))[: n // 4].tolist())
    itm = run.shared(matches)
    if by == "matching":
        return top_by_score(itm, 0.25).nonzero().flatten().tolist()
    every, fraction = (4, 1.0) if by == "clusters" else (2, 0.5)
    choice = Choice(max(2, n // 50), every=every, itm_fraction=fraction, kind=kind)
    return choose(run.shared(captioner)[0], itm, choice, run.generator("clusters"), CODES).keep.tolist()


def _teach(
    run: Run, model: CodebookCaptioner, tokenizer: object, pixels: Tensor, captions: Sequence[str], steps: int
) -> None:
    data = TensorDataset(2 * pixels - 1, *caption_ids(captions, tokenizer))
    config = FitConfig(lr=1e-3, after_step=Reseeding(steps // 2, run.seed))
    fit(model, data, steps=run.steps(steps), loss=lambda model, batch: model(*batch).loss, config=config, on=run)
