"""DreamLIP: do many sentences of one long description teach more than one caption, and find their own patches?

Scenes of three coloured shapes (`_listed`) with three sorts of text: a vague caption that names the nouns but drops
three in ten of them, a clean short one with colours, and a long description of four sentences. The text tower reads 15
words, as CLIP reads 77 tokens of longer ones. The image tower is nano-clip's and stays as it is; one layer on its patch
tokens, the projection and the text tower learn from nothing (`_listed_tokens`).

Same towers, images and steps in all arms: ``raw`` learns from the vague caption; ``long`` from the description, cut
off; ``one`` from one text drawn at every step; ``several`` from the vague caption and two drawn texts, all positives;
``dreamlip`` also groups patches. Controls: ``one_longer`` is ``one`` for three times the steps, which is as many texts
as ``several`` reads; ``shuffled`` is ``dreamlip`` on texts of other images.

``r@1``: image to clean short caption and back; ``miou``: of patches named by the nearest noun; ``pointing``: how much
more of the grouping weights of a sentence lies on its thing than of the picture, in points. Images are the mean of
projected patches, so that all arms train what names them. In so few steps grouping only takes from retrieval.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from foveal.lab import Claim, Recipe, Run
from foveal.pretrain.dreamlip import Captions
from foveal.recipes import _listed as data
from foveal.recipes._listed_tokens import frozen_tokens
from foveal.recipes._sentence_towers import SentenceTowers, captions, scores
from foveal.train import FitConfig, fit

SCENES, TEST, STEPS, SEVERAL = 1200, 300, 240, 3


def raw(said: Captions, rng: torch.Generator) -> list[str]:
    return [said.raw]


def cut_long(said: Captions, rng: torch.Generator) -> list[str]:
    return [" ".join(said.long.split()[: data.LENGTH - 1])]


def drawn(said: Captions, rng: torch.Generator) -> list[str]:
    return said.sample(1, rng, always_raw=False)


def several(said: Captions, rng: torch.Generator) -> list[str]:
    return said.sample(SEVERAL, rng)


def arm(run: Run, texts, grouping: float = 0.0, steps: int = STEPS, wrong: bool = False) -> dict[str, float]:
    train, frozen = run.shared(data.listed, 0, SCENES), run.shared(frozen_tokens, 0, SCENES)
    said, rng = captions(run, train), run.generator("texts")
    if wrong:
        said = [said[i] for i in torch.randperm(len(said), generator=run.generator("shuffle")).tolist()]

    def loss(model: SentenceTowers, batch: Sequence[Tensor]) -> Tensor:
        chosen = [texts(said[row], rng) for row in batch[0].tolist()]
        ids = data.encode([text for one in chosen for text in one])
        return model(frozen[batch[0]], ids.unflatten(0, (len(chosen), -1)))

    model = run.build(SentenceTowers, grouping)
    run.cost(model, tokens=len(texts(said[0], run.generator())))
    config = FitConfig(lr=2e-3, after_step=lambda model: model.objective.clamp_())
    rows = [(row,) for row in range(len(train))]
    fit(model, rows, steps=run.steps(steps), loss=loss, config=config, on=run)
    return scores(model, run.shared(frozen_tokens, 10_000, TEST), run.shared(data.listed, 10_000, TEST))


RECIPE = Recipe(
    paper="dreamlip",
    arms={
        "raw": partial(arm, texts=raw),
        "long": partial(arm, texts=cut_long),
        "one": partial(arm, texts=drawn),
        "several": partial(arm, texts=several),
        "dreamlip": partial(arm, texts=several, grouping=1.0),
        "one_longer": partial(arm, texts=drawn, steps=SEVERAL * STEPS),
        "shuffled": partial(arm, texts=several, grouping=1.0, wrong=True),
    },
    claims=[
        Claim("long", beats="raw", on="r@1", published="COCO R@1 30.2 against 14.8 (CC3M, ViT-B/16)"),
        Claim("one", beats="long", on="r@1", published="35.7 against 30.2, sampled sub-captions"),
        Claim("several", beats="one", on="r@1"),
        Claim("dreamlip", beats="several", on="miou", published="37.3 against 34.8 for CLIP, average"),
        Claim("dreamlip", beats="several", on="pointing"),
        Claim("dreamlip", beats="several", on="r@1", by=-1.0),
    ],
    controls=("one_longer", "shuffled"),
    real="foveal train clip-like --objective dreamlip --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from foveal.pretrain.dreamlip import DreamLIPObjective, sample_subcaptions

texts = sample_subcaptions("a photo", ["a dog"], "A dog runs. It is brown. Grass.", 4, torch.Generator())  # each step
objective = DreamLIPObjective(patch_dim=768, embed_dim=512)
images, patches = torch.randn(8, 512), torch.randn(8, 49, 768)  # pooled, and patch states without the class token
objective(images, patches, torch.randn(8, len(texts), 512)).loss.backward()
objective.clamp_()  # after every optimiser step
""",
)
