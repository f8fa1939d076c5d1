"""AdaptCLIPZS: does training on described classes help to name new classes from their descriptions?

Forty species of a world (see `_species`): invented names, four sentences on their looks and two on where they live.
Twenty *base* species have 16 pictures each to tune nano-clip on; twenty *novel* ones are only described. nano-clip's
vision tower is run once: its projection, the text tower and the two temperatures are tuned, in 50 steps, without
augmentation. Names mean nothing to nano-clip, in contrast to those of birds to CLIP: with names alone novel species
stay at chance (5 %), so that the arms to look at are those that are tested with descriptions.

``shuffled`` learns from the descriptions of other base species, ``diagonal`` takes texts of the same species in the
batch for wrong ones (CLIP's loss), ``one`` has the first sentence of each species only.

The learning rate was chosen of 3e-5, 1e-4 and 3e-4 on seed 100, which is not reported: 1e-4 named most novel species
for both ``adaptclipzs`` and ``tuned.described``, and stands for all arms. From 3e-4 on, names are learnt by heart.
"""

from functools import partial

import torch

from foveal.adapt.adaptclipzs import BagFineTuner
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._species import captions
from foveal.recipes._species_clip import BOTH, Sources, measured, task

EPOCHS, BATCH = 10, 64


def zero_shot(run: Run, test: Sources) -> dict[str, float]:
    data = run.shared(task)
    return measured(run, data.encoder, data, test)


def tuned(run: Run, train: Sources, test: Sources, how: str = "", lr: float = 1e-4) -> dict[str, float]:
    data = run.shared(task)
    bags = [captions(one, train) for one in data.train.classes]
    if how == "shuffled":
        order = torch.randperm(len(bags), generator=run.generator("shuffle"))
        other = order.roll(1)[order.argsort()].tolist()  # one circle through all species: none keeps its own
        bags = [
            [said.replace(data.train.classes[k].name, one.name) for said in bags[k]]
            for k, one in zip(other, data.train.classes)
        ]
    bags = [bag[:1] for bag in bags] if how == "one" else bags
    ids, keyed = data.train.labels, dict(enumerate(bags))
    if how == "diagonal":
        ids, keyed = torch.arange(len(ids)), {i: bags[label] for i, label in enumerate(ids.tolist())}
    tuner = BagFineTuner(data.encoder, epochs=run.steps(EPOCHS), batch_size=BATCH, main_lr=lr, proj_lr=lr)
    tuner.fit(data.train.rows, ids, keyed, run.generator("fit"))
    for epoch, loss in enumerate(tuner.losses_):
        run.record("loss", loss, epoch)
    return measured(run, tuner.encoder_, data, test)


RECIPE = Recipe(
    paper="adaptclipzs",
    arms={
        "names": partial(zero_shot, test=()),
        "described": partial(zero_shot, test=BOTH),
        "tuned": partial(tuned, train=(), test=()),
        "tuned.described": partial(tuned, train=(), test=BOTH),
        "adaptclipzs": partial(tuned, train=BOTH, test=BOTH),
        "looks": partial(tuned, train=("looks",), test=("looks",)),
        "places": partial(tuned, train=("places",), test=("places",)),
        "shuffled": partial(tuned, train=BOTH, test=BOTH, how="shuffled"),
        "diagonal": partial(tuned, train=BOTH, test=BOTH, how="diagonal"),
        "one": partial(tuned, train=BOTH, test=BOTH, how="one"),
    },
    claims=[
        Claim("adaptclipzs", beats="tuned", on="novel", by=5.0, published="4 to 5 points on birds and flowers"),
        Claim("adaptclipzs", beats="tuned.described", on="novel"),
        Claim("adaptclipzs", beats="described", on="novel"),
        Claim("adaptclipzs", beats="looks", on="novel", published="habitats complement looks"),
        Claim("adaptclipzs", beats="places", on="novel"),
        Claim("names", beats="described", on="novel", by=-5.0, published="descriptions at the test alone do not help"),
    ],
    controls=("shuffled", "diagonal", "one"),
    real="foveal adapt adaptclipzs --model openai/clip-vit-base-patch32 --train train.csv --captions captions.json "
    "--test test.csv -o tuned",
    example="""
import numpy as np
import torch
from foveal import zoo
from foveal.adapt.adaptclipzs import BagFineTuner

pictures = [np.full((96, 96, 3), colour, np.uint8) for colour in [(200, 30, 30), (30, 30, 200)] * 4]  # yours
known = {0: ["a zog, red all over", "a zog, without any blue"], 1: ["a wug, blue all over"]}
new = {0: ["a fep, quite red"], 1: ["a dax, quite blue"]}  # classes without a picture
tuner = BagFineTuner(zoo.load("nano-clip"), epochs=2, main_lr=1e-4, proj_lr=1e-4)  # or a DualEncoder of any CLIPModel
tuner.fit(pictures, [0, 1] * 4, known, torch.Generator().manual_seed(0))
print(tuner.predict(pictures, new))
""",
)
