"""What TL;DR needs to know of a dirty set: how well pairs match, codes, and new captions."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.curate.tldr import Choice, CodebookCaptioner, caption_ids, choose, top_by_score
from foveal.curate.tldr_train import Reseeding, small_captioner
from foveal.data import world
from foveal.data.word_ids import WordIds, split
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.recipes._caption_towers import LONGEST, CaptionTowers
from foveal.recipes._noisy_pairs import tokens
from foveal.recipes._prefix_data import features
from foveal.recipes._prefix_towers import FEATURES
from foveal.recipes._tldr_sets import COMMON, RARE, SmallTowers, clean, dirty
from foveal.train import FitConfig, fit
from foveal.zoo.nano.bpe import clip_tokenizer

CODES, DIM = 128, 96


def words(texts: Sequence[str]) -> list[str]:
    """Texts that the towers can hold: "original; generated" may be too long for them."""
    return [" ".join(split(text)[: LONGEST - 1]) for text in texts]


def towers(run: Run, images: Float[Tensor, "n 128"], captions: Sequence[str], steps: int) -> SmallTowers:
    """CLIP, from features."""
    known = WordIds.of([*captions, " ".join(COMMON + RARE), *world.TEMPLATES, "a an"])
    model = run.build(SmallTowers, known)
    ids = torch.from_numpy(known.encode(words(captions), LONGEST))
    config = FitConfig(lr=1e-3, batch_size=128, after_step=CaptionTowers.clamp)
    fit(model, TensorDataset(images, ids), steps=run.steps(steps), config=config, on=run)
    return model


def matches(run: Run) -> Float[Tensor, " n"]:
    """How well picture and caption match, says a dual encoder that saw the clean pairs only."""
    pairs, data = run.shared(clean), run.shared(dirty)
    judge = towers(run, features(pairs.images), [*pairs.captions], 100)
    with torch.no_grad():
        return (unit_rows(judge.image(data.features)) * unit_rows(judge.encode(words(data.captions)))).sum(1)


def listener(tokenizer: object) -> CodebookCaptioner:
    """A captioner of random weights for nano-clip's tokens."""
    decoder = small_captioner(tokenizer, image_size=32, width=DIM, layers=3).decoder
    vision = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, DIM))
    return CodebookCaptioner(vision, decoder, CODES, DIM)


def captioner(run: Run) -> tuple[Int[Tensor, "n t"], Callable[[Sequence[int]], list[str]]]:
    """Codes of all pictures; and who writes captions, after some more steps on the clean pairs."""
    data, pairs = run.shared(dirty), run.shared(clean)
    tokenizer = clip_tokenizer([*data.captions, *pairs.captions], 900, LONGEST)
    model = run.build(listener, tokenizer)
    _teach(run, model, tokenizer, data.tokens, data.captions, 320)
    codes = torch.cat([model.codes(part) for part in data.tokens.split(500)])
    writer = deepcopy(model)
    _teach(run, writer, tokenizer, tokens(pairs.images), pairs.captions, 160)

    def describe(rows: Sequence[int]) -> list[str]:
        parts = data.tokens[list(rows)].split(250)
        return [text for part in parts for text in writer.generate(part, tokenizer, prompt="", min_length=4)]

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
    run: Run, model: CodebookCaptioner, tokenizer: object, seen: Tensor, captions: Sequence[str], steps: int
) -> None:
    data = TensorDataset(seen, *caption_ids(captions, tokenizer))
    config = FitConfig(lr=1e-3, after_step=Reseeding(steps // 2, run.seed))
    fit(model, data, steps=run.steps(steps), loss=lambda model, batch: model(*batch).loss, config=config, on=run)
