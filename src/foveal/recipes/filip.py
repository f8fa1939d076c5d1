"""FILIP: does word-patch late interaction find words in the picture better than one vector for each side?

Scenes of three coloured shapes at 48 px with captions that list colour, noun and place of each (`_listed`). All arms
have the same towers and projections and take the same steps: ``global`` averages the projected tokens of each side and
has CLIP's loss, ``filip`` scores tokens, ``quarter`` a quarter of them, ``shuffled`` is ``filip`` on captions of other
images. ``one_prompt`` is the model of ``filip``.

``r@1``: image to caption and back among later scenes; ``swap``: how often the true caption beats the one in which two
things have changed colours; ``localisation``: how much more of the patches that are aligned with a thing's colour or
noun shows the thing than of the whole picture, in points (0 where no patch is); ``top1``: zero-shot naming of scenes of
one shape, with four prompts whose similarities are averaged, or with the first of them. One learning rate for all.
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.lab import Claim, Recipe, Run
from foveal.pretrain import filip
from foveal.recipes import _listed as data
from foveal.recipes._token_towers import TokenTowers, localisation
from foveal.train import FitConfig, fit

PROMPTS = ("{} top left", "{} top right", "{} bottom left", "{} bottom right")


def trained(run: Run, pooled: bool = False, keep_ratio: float | None = None, wrong: bool = False) -> TokenTowers:
    train = run.shared(data.listed, 0, 3000)
    ids = data.encode([data.full_caption(things) for things in train.things])
    model = run.build(TokenTowers, pooled, keep_ratio)
    config = FitConfig(lr=1e-3, after_step=lambda model: model.objective.logit_scale.clamp_())
    pairs = TensorDataset(train.pixels, data.shuffled(run, ids) if wrong else ids)
    fit(model, pairs, steps=run.steps(300), config=config, on=run)
    return model


@torch.no_grad()
def arm(run: Run, pooled: bool = False, keep_ratio: float | None = None, wrong: bool = False) -> dict[str, float]:
    with torch.enable_grad():
        model = run.shared(trained, pooled, keep_ratio, wrong)
    run.cost(model, tokens=data.GRID**2)
    test = run.shared(data.listed, 10_000, 400)
    texts = [data.full_caption(things) for things in test.things]
    scores, own = model.similarity(test.pixels, data.encode(texts)), torch.arange(len(test))
    hits = [(side.argmax(dim) == own).float().mean().item() for side, dim in zip(scores, (1, 0))]
    swapped = [data.full_caption([(b[0], *a[1:]), (a[0], *b[1:]), *rest]) for a, b, *rest in test.things]
    against = model.similarity(test.pixels, data.encode(swapped))
    differ = torch.tensor([a[0] != b[0] for a, b, *_ in test.things])
    better = (sum(side.diagonal() for side in scores) > sum(side.diagonal() for side in against))[differ]
    found = {"r@1": 50 * sum(hits), "swap": 100 * better.float().mean().item()}
    return found | {"localisation": 100 * localisation(run, model, test)} | top1(run, model, PROMPTS)


@torch.no_grad()
def top1(run: Run, model: TokenTowers, prompts: tuple[str, ...]) -> dict[str, float]:
    test = world.classify(20_000 + run.seed, run.size(400), data.NOUNS, data.SCENES)
    text, mask = model.words(data.encode([prompt.format(noun) for noun in data.NOUNS for prompt in prompts]))
    text, mask = model.scored(text, mask), mask[:, :1] if model.pooled else mask
    classes = (part.unflatten(0, (len(data.NOUNS), -1)) for part in (text, mask))
    images = model.scored(model.patches(to_tensor(test.images)))
    said = filip.prompt_ensemble_similarity(images, *classes).argmax(1)
    return {"top1": 100 * (said == torch.from_numpy(test.labels)).float().mean().item()}


def one_prompt(run: Run) -> dict[str, float]:
    return top1(run, run.shared(trained, False, None, False), PROMPTS[:1])


RECIPE = Recipe(
    paper="filip",
    arms={
        "global": partial(arm, pooled=True),
        "filip": arm,
        "quarter": partial(arm, keep_ratio=0.25),
        "shuffled": partial(arm, wrong=True),
        "one_prompt": one_prompt,
    },
    claims=[
        Claim("filip", beats="global", on="r@1", published="COCO R@1 29.2 to 30.5 and 17.9 to 18.5, same data"),
        Claim("filip", beats="global", on="localisation", by=20.0, published="word-patch maps localise class names"),
        Claim("filip", beats="global", on="swap"),
        Claim("quarter", beats="filip", on="r@1", by=-2.0, published="25 % of the tokens at the cost of CLIP"),
        Claim("filip", beats="one_prompt", on="top1"),
    ],
    controls=("shuffled",),
    real="foveal train clip-like --objective filip --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from foveal.pretrain.filip import FILIPObjective

objective = FILIPObjective(768, 512)  # widths of the tokens of any two towers, such as CLIPModel's
images, texts = torch.randn(8, 50, 768), torch.randn(8, 12, 512)  # their last_hidden_state
mask = torch.arange(12) < torch.randint(3, 13, (8, 1))  # attention_mask.bool()
objective(images, texts, mask).loss.backward()
objective.logit_scale.clamp_()  # after every optimiser step
""",
)
