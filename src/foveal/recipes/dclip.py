"""Description: do words for what a class looks like find classes whose names say little or nothing?

Thirty classes of nano-clip's world (colour, shape, pattern), frozen nano-clip, 600 pictures that it has never seen.
*Common* names are such as "red star" and leave the pattern to the descriptors; *invented* ones ("dutox") mean nothing.
A scripted language model reads descriptors off the renderer's table (``dclip``); SmolLM2 says what it believes of each
shape (``smollm2``, common names alone). ``name`` and ``photo`` have none; ``shuffled`` has those of another class,
``random`` as many words of other things. ``max`` takes the best descriptor alone, ``no_name`` leaves names out.

*Editing*: nano-clip's text side is taught eight invented names from things that stand before one background each, in
95 % of the pictures; then things stand before the others. ``biased`` is described by that background and the shape,
``edited`` loses it and gets two true features, ``removed`` only loses it, ``false`` gets two of another class.
"""

from functools import partial

from foveal.adapt.dclip import descriptor_messages, parse_descriptors
from foveal.data.world.vocabulary import SPRITE
from foveal.lab import Claim, Recipe, Run, figures
from foveal.llm import smollm2
from foveal.recipes._described_things import kinds
from foveal.recipes._descriptors import Descriptors, classifier, described, examined, top1
from foveal.recipes._descriptors_editing import counter_biased, repaired


def bare(run: Run, attribute: str) -> Descriptors:
    return {getattr(kind, attribute): [] for kind in run.shared(kinds)}


def shuffled(run: Run, attribute: str) -> Descriptors:
    true = described(run, attribute)
    lists, shift = list(true.values()), 1 + int(run.rng("shift").integers(len(true) - 1))
    return dict(zip(true, lists[shift:] + lists[:shift], strict=True))


def random_words(run: Run, attribute: str) -> Descriptors:
    rng, nouns = run.rng("words"), list(SPRITE)
    true = described(run, attribute)
    return {name: [" ".join(rng.choice(nouns, len(d.split()))) for d in ds] for name, ds in true.items()}


def by_smollm2(run: Run, attribute: str) -> Descriptors:
    """What it lists for each shape, under the names of all classes of that shape."""
    shapes = sorted({kind.shape for kind in run.shared(kinds)})
    asked = shapes[: run.size(len(shapes))]
    said = smollm2().generate([descriptor_messages(name) for name in asked], max_new_tokens=run.steps(48))
    found = dict(zip(asked, map(parse_descriptors, said), strict=True))
    return {getattr(kind, attribute): found.get(kind.shape, []) for kind in run.shared(kinds)}


def method(run: Run) -> dict[str, float]:
    found, (images, rows, _) = top1(run, described), run.shared(examined)
    named = classifier(run, described(run, "invented"))
    why = map(named.explain, rows[:6])
    said = [f"{one.class_name}: " + ", ".join(f"{text} {value:.2f}" for text, value in one.items) for one in why]
    run.figure("why.png", figures.picture_grid(images[:6], said, columns=3), "The class, and how well its words fit")
    return found


RECIPE = Recipe(
    paper="dclip",
    arms={
        "name": partial(top1, describe=bare),
        "photo": partial(top1, describe=bare, prefix="a photo of a "),
        "dclip": method,
        "max": partial(top1, describe=described, reduce="max"),
        "no_name": partial(top1, describe=described, include_class_name=False),
        "smollm2": partial(top1, describe=by_smollm2, attributes=("common",)),
        "shuffled": partial(top1, describe=shuffled),
        "random": partial(top1, describe=random_words),
        "named": partial(counter_biased, named=True),
        "biased": counter_biased,
        "removed": partial(counter_biased, edit=partial(repaired, shift=None)),
        "edited": partial(counter_biased, edit=repaired),
        "false": partial(counter_biased, edit=partial(repaired, shift=3)),
    },
    claims=[
        Claim("dclip", beats="name", on="invented top-1", by=20.0),
        Claim("dclip", beats="name", on="common top-1", published="ImageNet 58.5 → 63.0 % (ViT-B/32)"),
        Claim("dclip", beats="shuffled", on="invented top-1"),
        Claim("edited", beats="biased", on="counter-biased top-1", by=5.0),
        Claim("edited", beats="removed", on="counter-biased top-1"),
    ],
    controls=("shuffled", "random", "false"),
    real="foveal adapt dclip --model openai/clip-vit-base-patch32 --images photos --classes classes.txt --lm smollm2",
    example="""
from foveal import zoo
from foveal.adapt.dclip import DescriptionClassifier
from foveal.data.world import WorldConfig, pairs
from foveal.zoo.dual_encoder import DualEncoder

nano = zoo.load("nano-clip")  # or any CLIPModel with its processor
clip = DualEncoder(nano.model, nano.processor)
words = {"wug": ["a red star", "a star"], "dax": ["a blue circle"]}
things = DescriptionClassifier(clip.image_features, clip.text_features, words)
picture = pairs(1_000_000, 1, WorldConfig(size=96, things=(1, 1), nouns=("star",), colours=("red", "white"))).images[0]
print(things.explain(picture))
""",
)
