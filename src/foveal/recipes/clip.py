"""CLIP: does choosing the right caption in the batch teach an image tower more, per step, than predicting its words?

(a) World scenes of one or two things at 48 px with their short captions; zero-shot classification of 24 nouns on
single things. *bag_of_words* has the same image tower and a head with as many parameters as CLIP's text tower, which
predicts the caption's words. *clip_half* has half the steps, *shuffled* learns from captions of other images.
(b) The same trained CLIP with bare class names, one prompt, and an ensemble of eight.

All arms of a part share data, seeds, steps and learning rate (1e-3, the best of 5e-4, 1e-3 and 2e-3 for both losses on
seed 100, which is not reported).
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Claim, Recipe, Run, figures
from foveal.recipes._encoders import LONGEST, CaptionTowers
from foveal.train import FitConfig, fit

SPRITES = ("dog", "cat", "fish", "apple", "banana", "car", "bicycle", "hammer", "guitar", "shoe", "tree", "chair")
NOUNS = (*world.SHAPES, *SPRITES)
SCENES = world.WorldConfig(size=48, things=(1, 2), nouns=NOUNS, min_visible=0.6)
STEPS = 300
PROMPTS = {"bare": ("{}",), "one": ("a picture of a {}",), "all": tuple(t.format("a {}") for t in world.TEMPLATES)}


def trained(run: Run, contrastive: bool, steps: int, shuffled: bool, lr: float = 1e-3) -> CaptionTowers:
    pairs = world.pairs(run.seed, run.size(6000), SCENES)
    words = WordIds.of([*pairs.captions, *NOUNS])
    ids = torch.from_numpy(words.encode(pairs.captions, LONGEST))
    ids = ids[torch.randperm(len(ids), generator=run.generator("shuffle"))] if shuffled else ids
    model = run.build(CaptionTowers, words, contrastive)
    config = FitConfig(lr=lr, batch_size=128, after_step=CaptionTowers.clamp)
    fit(model, TensorDataset(to_tensor(pairs.images), ids), steps=run.steps(steps), config=config, on=run)
    return model


def scenes(run: Run, contrastive: bool = True, steps: int = STEPS, shuffled: bool = False, prompts: str = "all"):
    """Zero-shot accuracy in percent over 24 nouns on scenes of one thing."""
    model = run.shared(trained, contrastive, steps, shuffled)
    run.cost(model)
    test = world.classify(10_000 + run.seed, run.size(1000), NOUNS, SCENES)
    found = model.class_scores(to_tensor(test.images), NOUNS, PROMPTS[prompts]).argmax(1)
    if run.arm == "clip":
        run.figure("zero_shot.png", figures.picture_grid(test.images[:12], [NOUNS[i] for i in found[:12]], columns=6))
    return {"top1": 100 * (found == torch.from_numpy(test.labels)).float().mean().item()}


RECIPE = Recipe(
    paper="clip",
    arms={
        "bag_of_words": partial(scenes, contrastive=False),
        "clip": scenes,
        "clip_half": partial(scenes, steps=STEPS // 2),
        "shuffled": partial(scenes, shuffled=True),
        "bare_names": partial(scenes, prompts="bare"),
        "one_prompt": partial(scenes, prompts="one"),
    },
    claims=[
        Claim("clip", beats="bag_of_words", on="top1", published="76.2 % zero-shot ImageNet top-1 for ViT-L/14@336"),
        Claim("clip_half", beats="bag_of_words", on="top1", published="about 4 times less compute"),
        Claim("clip", beats="bare_names", on="top1", published="almost 5 points from prompts and their ensemble"),
    ],
    controls=("shuffled",),
    real="foveal run clip",
)
