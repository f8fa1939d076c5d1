"""LiMBeR: which concepts of an image encoder reach a frozen language model through one affine map?

World scenes of one emoji at 32 px with captions such as "a small dog on blue". Encoders of one architecture (ViT,
16 tokens) see the same images for the same steps: *random* learns nothing, *masked* to predict hidden patches,
*category* to classify the noun, *contrastive* to find the caption (CLIP's loss). The frozen language model is a Llama
that read texts about other scenes. The map is trained alike for all; *blind*: on features of the wrong images.

``category`` and ``property``: how many greedy captions of new scenes name the right noun, the right size and colour;
``contrast``: category minus property; ``agreement``: how far wrong nouns are alive, eaten or driven as the right ones
are. The map's learning rate, the same for all arms, is that of 1e-3, 3e-3, 1e-2 and 3e-2 from which the random arm's
loss fell no further on seed 100, which is not reported.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.connect.limber import Limber, LimberConnector, caption_category, property_agreement
from foveal.lab import Claim, Recipe, Run, figures
from foveal.recipes._encoders import OBJECTIVES, TinyEncoder
from foveal.recipes._language import tiny_llama
from foveal.recipes._singles import LENGTH, NOUNS, WORDS, other_texts, scenes
from foveal.train import FitConfig, fit

PROPERTIES = {
    "alive": "dog frog parrot fish tree",
    "eaten": "fish apple banana carrot pizza",
    "moves": "dog fish car bus",
}
WIDTH = 64


def language_model(run: Run) -> nn.Module:
    return tiny_llama(run, other_texts(run, 8000), len(WORDS))


def encoder(run: Run, objective: str) -> TinyEncoder:
    pixels, _, ids, nouns = run.shared(scenes, 0, 6000)
    model = run.build(TinyEncoder, objective, 32, 8, WIDTH, len(NOUNS), len(WORDS), LENGTH)
    if objective != "random":
        config = FitConfig(lr=1e-3, batch_size=128)
        fit(model, TensorDataset(pixels, ids, nouns), steps=run.steps(300), config=config, on=run)
    return model


def arm(run: Run, objective: str, blind: bool = False) -> dict[str, float]:
    vision, language = run.shared(encoder, objective), run.shared(language_model)
    pixels, _, ids, _ = run.shared(scenes, 0, 6000)
    features = vision.patch_features(pixels)
    if blind:
        features = features[torch.randperm(len(features), generator=run.generator("blind"))]
    limber = Limber(run.build(LimberConnector, WIDTH, 128), language, WORDS.end)
    run.cost(limber, tokens=features.shape[1])
    config = FitConfig(lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95))
    fit(limber, TensorDataset(features, ids), steps=run.steps(400), config=config, on=run)
    pixels, texts, _, nouns = run.shared(scenes, 10_000, 1000)
    said = [WORDS.decode(row) for row in limber.generate(vision.patch_features(pixels), max_new_tokens=LENGTH).tolist()]
    if run.arm == "contrastive":
        run.figure("captions.png", figures.picture_grid(list(pixels[:8].permute(0, 2, 3, 1)), said[:8]))
    return scores(said, texts, nouns)


def scores(said: list[str], texts: list[str], nouns: Tensor) -> dict[str, float]:
    named = torch.tensor([caption_category(text, NOUNS) for text in said])
    category = 100 * (named == nouns).float().mean().item()
    hits = [word in text.split() for text, true in zip(said, texts, strict=True) for word in true.split()[1::3]]
    words = 100 * sum(hits) / len(hits)  # size and colour behind
    rows = torch.tensor([[noun in names.split() for names in PROPERTIES.values()] for noun in NOUNS])
    wrong = (named >= 0) & (named != nouns)
    agreement = 100 * property_agreement(rows, nouns[wrong], named[wrong]) if wrong.any() else 100.0
    return {"category": category, "property": words, "contrast": category - words, "agreement": agreement}


RECIPE = Recipe(
    paper="limber",
    arms={
        **{objective: partial(arm, objective=objective) for objective in OBJECTIVES},
        "blind": partial(arm, objective="contrastive", blind=True),
    },
    claims=[
        Claim("contrastive", beats="masked", on="category", by=10.0),
        Claim("contrastive", beats="masked", on="contrast"),
        Claim("category", beats="masked", on="category"),
        Claim("masked", beats="random", on="property"),
    ],
    controls=("random", "blind"),
    real="foveal demo",
    example="""
from foveal import zoo
from foveal.data.photos import photos
from foveal.connect.limber import Limber, LimberConnector

smol = zoo.load("smollm2")  # or any AutoModelForCausalLM and its tokenizer
limber = Limber(LimberConnector(1280, 576, seq_len=4), smol.model, smol.tokenizer.eos_token_id)
picture = zoo.load("efficientnet-lite0").features([photos()[0].image])  # or of any RGB array
print(limber.generate(picture, max_new_tokens=5))  # token ids; train the map first, with foveal.train.fit
""",
)
