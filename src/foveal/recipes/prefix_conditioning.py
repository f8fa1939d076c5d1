"""Prefix conditioning: does a token for the data set keep the narrowness of labels out of zero-shot classifiers?

*Captions*: scenes of one or two things of 24 kinds in three styles, every fifth caption of another picture.
*Labels*: clean pictures of 12 of the kinds on plain ground; a label becomes a sentence. The image tower is nano-clip's
and stays as it is; a head on it and the text tower, which is where prefixes act, learn from nothing. ``captions``
learns from the captions alone, ``captions_twice`` in as many steps as the others; ``mixed`` from batches that are half
and half, ``debiased`` from batches of one source each, ``prefix`` with a prefix for each source, too; ``random_prefix``
draws it for each batch. UniCL's objective; ``clip_…`` with CLIP's.

Zero-shot among all 24 names, in caption mode: ``new``, kinds without labels as the captions show them; ``shift``,
labelled kinds in two styles that nobody has seen; ``zero_shot``, the mean of both; ``seen``, labelled kinds as their
labels show them. ``label_prefix`` is the model of ``prefix``, asked with the prefix of labels.

The learning rate is that of CLIP's recipe in all arms. On seed 100, image towers from nothing stayed near chance.
"""

from functools import partial

import torch
from torch import Tensor

from foveal.data import world
from foveal.lab import Claim, Recipe, Run
from foveal.nn.zero_shot import build_zero_shot_classifier, zero_shot_logits
from foveal.pretrain.prefix_conditioning import CAPTION, LABEL
from foveal.recipes._prefix_data import NOUNS, TEMPLATES, TESTS, Batches, features, union
from foveal.recipes._prefix_towers import PrefixTowers
from foveal.train import FitConfig, fit

EACH, STEPS = 1920, 120  # of either source: four times through all of it


def trained(run: Run, objective: str, order: str, prefix: str, steps: int) -> PrefixTowers:
    data = run.shared(union, EACH)
    model = run.build(PrefixTowers, data.words, objective)
    config = FitConfig(lr=1e-3, after_step=lambda model: model.objective.logit_scale.clamp_())
    batches = Batches(run, data, order, prefix, run.steps(steps))
    fit(model, batches, steps=run.steps(steps), config=config, on=run)
    return model


def test(run: Run, name: str) -> tuple[Tensor, Tensor]:
    nouns, config = TESTS[name]
    found = world.classify(10_000 + run.seed, run.size(600), nouns, config)
    return features(found.images), torch.tensor([NOUNS.index(nouns[label]) for label in found.labels])


def arm(
    run: Run, order: str, prefix: str = "none", objective: str = "unicl", steps: int = 2 * STEPS, asked: int = CAPTION
) -> dict[str, float]:
    """Zero-shot accuracies in percent."""
    model = run.shared(trained, objective, order, prefix, steps)
    run.cost(model)
    classes = build_zero_shot_classifier(lambda texts: model.encode(texts, asked), NOUNS, TEMPLATES)
    found = {}
    for name in TESTS:
        images, wanted = run.shared(test, name)
        with torch.no_grad():
            guessed = zero_shot_logits(model.image(images), classes).argmax(1)
        found[name] = 100 * (guessed == wanted).float().mean().item()
    return {**found, "zero_shot": (found["new"] + found["shift"]) / 2}


RECIPE = Recipe(
    paper="prefix_conditioning",
    arms={
        "captions": partial(arm, order="captions", steps=STEPS),
        "captions_twice": partial(arm, order="captions"),
        "mixed": partial(arm, order="mixed"),
        "debiased": partial(arm, order="debiased"),
        "prefix": partial(arm, order="debiased", prefix="source"),
        "random_prefix": partial(arm, order="debiased", prefix="random"),
        "label_prefix": partial(arm, order="debiased", prefix="source", asked=LABEL),
        "clip_debiased": partial(arm, order="debiased", objective="clip"),
        "clip_prefix": partial(arm, order="debiased", prefix="source", objective="clip"),
    },
    claims=[
        Claim("prefix", beats="debiased", on="zero_shot", published="better average zero-shot accuracy and robustness"),
        Claim("clip_prefix", beats="clip_debiased", on="zero_shot", published="the same for CLIP's objective"),
        Claim("prefix", beats="captions", on="new"),
        Claim("debiased", beats="mixed", on="zero_shot"),
        Claim("label_prefix", beats="prefix", on="seen"),
        Claim("prefix", beats="label_prefix", on="new"),
    ],
    controls=("captions_twice", "random_prefix"),
    real="foveal train clip-like --objective prefix_conditioning --data shards.tar "
    "--model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from foveal.pretrain.prefix_conditioning import CAPTION, LABEL, PrefixTextEncoder

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
clip = CLIPModel(CLIPConfig(text_config=small, vision_config=small, projection_dim=32))  # or CLIPModel.from_pretrained
encoder = PrefixTextEncoder.from_clip(clip)  # shares CLIP's weights
ids = torch.tensor([[49406, 320, 2368, 49407]])  # "a cat", as CLIP's tokenizer has it
print((encoder(ids, ids > 0, CAPTION) - encoder(ids, ids > 0, LABEL)).norm())
""",
)
