"""LiMBeR: which concepts of an image encoder reach a frozen language model through one affine map?

World scenes of one shape at 32 px with captions such as "a small red star". Encoders of one architecture (ViT,
16 tokens) see the same images for the same steps: *random* learns nothing, *masked* to predict hidden patches,
*category* to classify the noun, *contrastive* to find the caption (CLIP's loss). The frozen language model is a Llama
that read captions of other scenes. The map is trained alike for all; *blind*: on features of the wrong images.

``category`` and ``property``: how many greedy captions of new scenes name the right noun, the right colour and size;
``contrast``: category minus property; ``agreement``: how far wrong nouns share corners, holes and points with the right
one. The map's learning rate was chosen on seed 100, which is not reported, by the loss of the random arm.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import LlamaForCausalLM

from foveal.connect.limber import Limber, LimberConnector, caption_category, property_agreement
from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Claim, Recipe, Run, figures
from foveal.recipes._encoders import OBJECTIVES, TinyEncoder
from foveal.recipes._language import tiny_llama
from foveal.train import FitConfig, fit

SHAPES = tuple(world.SHAPES)
SCENES = world.WorldConfig(size=32, things=(1, 1), nouns=SHAPES, textures=("plain",), backgrounds=("plain",))
PROPERTIES = {"corners": "square triangle star diamond cross hexagon arrow", "hole": "ring", "point": "triangle star"}
WORDS = WordIds.of([" ".join(("a", *SHAPES, *world.COLOURS, *world.SIZES))])
WIDTH, LENGTH = 64, 5


def captions(drawn: list[world.Scene]) -> list[str]:
    return [f"a {t.size} {t.colour} {t.noun}" for t in (scene.things[0] for scene in drawn)]


def scenes(run: Run, first: int, n: int) -> tuple[Tensor, list[str], Tensor]:
    """Pixels, captions and nouns."""
    pairs = world.pairs(first + run.seed, run.size(n), SCENES)
    nouns = torch.tensor([SHAPES.index(scene.things[0].noun) for scene in pairs.scenes])
    return to_tensor(pairs.images), captions(pairs.scenes), nouns


def ids(texts: list[str]) -> Tensor:
    return torch.from_numpy(WORDS.encode(texts, LENGTH))


def language_model(run: Run) -> LlamaForCausalLM:
    """Has read captions of scenes that nothing else here uses."""
    others = world.World(SCENES, 20_000 + run.seed, run.size(8000))
    return tiny_llama(run, ids(captions([others.scene(i) for i in range(len(others))])), len(WORDS))


def encoder(run: Run, objective: str) -> TinyEncoder:
    pixels, texts, nouns = run.shared(scenes, 0, 6000)
    model = run.build(TinyEncoder, objective, 32, 8, WIDTH, len(SHAPES), len(WORDS), LENGTH)
    if objective != "random":
        config = FitConfig(lr=1e-3, batch_size=128)
        fit(model, TensorDataset(pixels, ids(texts), nouns), steps=run.steps(300), config=config, on=run)
    return model


def arm(run: Run, objective: str, blind: bool = False) -> dict[str, float]:
    vision, language = run.shared(encoder, objective), run.shared(language_model)
    pixels, texts, _ = run.shared(scenes, 0, 6000)
    features = vision.patch_features(pixels)
    if blind:
        features = features[torch.randperm(len(features), generator=run.generator("blind"))]
    limber = Limber(run.build(LimberConnector, WIDTH, 128), language, WORDS.end)
    run.cost(limber, tokens=features.shape[1])
    config = FitConfig(lr=3e-3, weight_decay=0.0, betas=(0.9, 0.95))
    loss = lambda model, batch: model(*batch).loss  # noqa: E731
    fit(limber, TensorDataset(features, ids(texts)), steps=run.steps(400), loss=loss, config=config, on=run)
    pixels, texts, nouns = run.shared(scenes, 10_000, 1000)
    said = [WORDS.decode(row) for row in limber.generate(vision.patch_features(pixels), max_new_tokens=LENGTH).tolist()]
    if run.arm == "contrastive":
        run.figure("captions.png", figures.picture_grid(list(pixels[:8].permute(0, 2, 3, 1)), said[:8]))
    return scores(said, texts, nouns)


def scores(said: list[str], texts: list[str], nouns: Tensor) -> dict[str, float]:
    named = torch.tensor([caption_category(text, SHAPES) for text in said])
    category = 100 * (named == nouns).float().mean().item()
    hits = [word in text.split() for text, true in zip(said, texts, strict=True) for word in true.split()[1:3]]
    words = 100 * sum(hits) / len(hits)  # size and colour
    rows = torch.tensor([[shape in names.split() for names in PROPERTIES.values()] for shape in SHAPES])
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
)
