"""The set of the matrix as TL;DR leaves it: chosen by codes and matching, with generated captions appended.

How well a pair matches says a CLIP that was trained on the whole set, with its flaws; the captioner reads its tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.curate.tldr import Choice, CodebookCaptioner, caption_ids, choose, refine_caption
from foveal.curate.tldr_train import Reseeding, small_captioner
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.recipes._clip_learners import Learner, caption_of
from foveal.recipes._pretrain_matrix_data import WIDTH, Pairs, training
from foveal.recipes._pretrain_matrix_training import trained
from foveal.train import FitConfig, fit
from foveal.zoo.nano.bpe import clip_tokenizer

CODES, DIM, STEPS, LONGEST = 64, 64, 200, 24
CLUSTER = 50
"""Samples of a cluster on average; the half of it is kept, and of that the half that matches better."""


@torch.no_grad()
def read(learner: Learner, pixels: Float[Tensor, "n 3 s s"], texts: list[str]) -> tuple[Tensor, Tensor]:
    """Patch tokens, and the cosine of each picture with its own text."""
    tokens = torch.cat([learner.patch_tokens(part) for part in pixels.split(250)])
    images = torch.cat([learner.image_features(part) for part in pixels.split(250)])
    return tokens, (unit_rows(images) * unit_rows(learner.text_features(texts))).sum(1)


def listener(tokenizer: object) -> CodebookCaptioner:
    decoder = small_captioner(tokenizer, image_size=32, width=DIM, layers=2).decoder
    return CodebookCaptioner(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, DIM)), decoder, CODES, DIM)


def reduced(run: Run, noise: float) -> Pairs:
    """For `Run.shared`: about a quarter of `training`."""
    pixels, samples = run.shared(training, noise)
    captions = [caption_of(sample) for sample in samples]
    tokens, matching = read(trained(run, Learner, noise)[0], pixels, captions)
    tokenizer = clip_tokenizer(captions, 600, LONGEST)
    captioner, steps = run.build(listener, tokenizer), run.steps(STEPS)
    fit(
        captioner,
        TensorDataset(tokens, *caption_ids(captions, tokenizer)),
        steps=steps,
        loss=lambda model, batch: model(*batch).loss,
        config=FitConfig(lr=2e-3, batch_size=48, after_step=Reseeding(steps // 2, run.seed)),
        on=run,
    )
    codes = torch.cat([captioner.codes(part) for part in tokens.split(500)])
    choice = Choice(max(2, len(samples) // CLUSTER), every=2)
    keep = choose(codes, matching, choice, run.generator("clusters"), CODES).keep
    parts = tokens[keep].split(250)
    said = [text for part in parts for text in captioner.generate(part, tokenizer, prompt="", min_length=4)]
    left = []
    for row, text in zip(keep.tolist(), said, strict=True):
        sample = samples[row]
        whole = (refine_caption(sample.captions[0], text), *sample.captions[1:]) if sample.captions else ()
        left.append(sample.with_(captions=whole))
    return pixels[keep], left
