"""CLIP: does choosing the right caption in the batch teach an image tower more, per step, than predicting its words?

*Scenes* of one or two emoji at 32 px with their short captions, then zero-shot classification of ten nouns on scenes of
one. ``bag_of_words`` has the same image tower and a head with as many parameters as CLIP's text tower, which predicts
the caption's words and starts at their base rates (without that it stayed near chance for these few steps);
``clip_half`` takes half the steps; ``shuffled`` learns from captions of other images. The arms ``bare_names`` and
``one_prompt`` are the model of ``clip``, asked without its ensemble of eight prompts.

These captions have some 80 different words, so that a bag of them is as good as class labels. The paper's captions
have an open vocabulary: where the bag of words wins here, that says how much CLIP's advantage rests on it.

*Real pixels*: frozen EfficientNet-Lite0 features of Twemoji and MiniLM features of their names, joined by two linear
projections, with CLIP's loss (``emoji_clip``) or with the cosine to the own name alone (``emoji_regression``). ``r@1``:
how often a picture of a held-out family finds its name among all of theirs.

Learning rates were chosen of 5e-4, 1e-3 and 2e-3 on seed 100, which is not reported: 2e-3 for the bag of words, 1e-3
for CLIP.
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.data.world.phrases import article
from foveal.lab import Claim, Recipe, Run, figures
from foveal.recipes._caption_towers import CaptionTowers
from foveal.recipes._emoji import name_retrieval
from foveal.train import FitConfig, fit

NOUNS = ("dog", "frog", "parrot", "apple", "carrot", "hamburger", "bus", "guitar", "tree", "book")
SCENES = world.WorldConfig(size=32, things=(1, 2), nouns=NOUNS, min_visible=0.8, radius=(0.25, 0.34), tint=0.0)
STEPS = 240


def prompt(template: str, noun: str) -> str:
    return template.format(f"{article(noun)} {noun}")


TEMPLATES = tuple(partial(prompt, template) for template in world.TEMPLATES)
PROMPTS = {"bare": ("{}",), "one": TEMPLATES[1:2], "all": TEMPLATES}


def trained(run: Run, contrastive: bool, steps: int, shuffled: bool) -> CaptionTowers:
    pairs = world.pairs(run.seed, run.size(6000), SCENES)
    words = WordIds.of([*pairs.captions, *NOUNS])
    ids = torch.from_numpy(words.encode(pairs.captions))
    ids = ids[torch.randperm(len(ids), generator=run.generator("shuffle"))] if shuffled else ids
    model = run.build(CaptionTowers, words, contrastive)
    model.start_at(ids)
    config = FitConfig(lr=1e-3 if contrastive else 2e-3, batch_size=128, after_step=CaptionTowers.clamp)
    fit(model, TensorDataset(to_tensor(pairs.images), ids), steps=run.steps(steps), config=config, on=run)
    return model


def scenes(run: Run, contrastive: bool = True, steps: int = STEPS, shuffled: bool = False, prompts: str = "all"):
    """Zero-shot accuracy in percent."""
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
        "emoji_regression": partial(name_retrieval, steps=STEPS, contrastive=False),
        "emoji_clip": partial(name_retrieval, steps=STEPS, contrastive=True),
    },
    claims=[
        Claim("clip", beats="bag_of_words", on="top1", published="76.2 % zero-shot ImageNet top-1 (ViT-L/14@336)"),
        Claim("clip_half", beats="bag_of_words", on="top1", published="equal accuracy with about 4 times less compute"),
        Claim("clip", beats="bare_names", on="top1", published="almost 5 points from prompts and their ensemble"),
        Claim("emoji_clip", beats="emoji_regression", on="r@1"),
    ],
    controls=("shuffled",),
    real="foveal train clip-like --objective clip --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from foveal.pretrain.clip import CLIPObjective

images, texts = torch.randn(8, 512, requires_grad=True), torch.randn(8, 512)  # features of any two towers, such as
objective = CLIPObjective()  # CLIPModel.get_image_features(...).pooler_output; gathers over processes by itself
objective(images, texts).loss.backward()
objective.logit_scale.clamp_()  # after every optimiser step
""",
)
