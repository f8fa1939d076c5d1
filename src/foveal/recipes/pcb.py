"""PCB: does asking for the classes that a model guesses to be rare make few labels worth more?

nano-clip learns twelve things from five rounds of twelve labels each, out of some 600 pictures in a long tail. Three of
the names mean nothing to it, so that it is sure and wrong there. All arms have the same pictures, the same first round,
and CoOp with four context vectors for each class, 60 epochs from scratch in each round, on cached features. The paper
has photographs, 37 to 196 classes and eight rounds.

*random*, *entropy*, *coreset* and *badge* buy what the method prefers, *….pcb* balances its candidates by guessed
classes, *….advance* goes on to the next class when a class has no candidate. ``as`` and ``ae`` add descriptions, which
are taken from the world's vocabulary instead of a language model. *three.plain* and *three.pcb* are the means of the
three base methods. *all* has every label, *zero_shot* none; *tip*, *adapter* and *probe* learn from the labels of
*random*, without prompts. ``area`` is the mean accuracy after each of the rounds; ``imbalance`` the standard deviation
of the labels per class; ``0.7 imbalance`` is that of the plain methods times 0.7, for a claim of 30 % less.
"""

from functools import partial

from foveal.lab import Claim, Recipe
from foveal.recipes._few_labels_arms import THREE, active, few_shot, three

RECIPE = Recipe(
    paper="pcb",
    arms={
        **{method: partial(active, method=method) for method in ("random", *THREE)},
        **{f"{method}.pcb": partial(active, method=method, balance=True) for method in ("random", *THREE)},
        "badge.advance": partial(active, method="badge", balance=True, missing="advance"),
        **{
            f"badge.pcb.{said.lower()}": partial(active, method="badge", balance=True, said=said)
            for said in ("AS", "AE")
        },
        "three.plain": partial(three, balance=False),
        "three.pcb": partial(three, balance=True),
        **{kind: partial(few_shot, kind=kind) for kind in ("all", "zero_shot", "tip", "adapter", "probe")},
    },
    claims=[
        Claim("three.pcb", beats="three.plain", on="balanced accuracy", published="higher on seven data sets"),
        *(Claim(f"{method}.pcb", beats=method, on="0.7 imbalance", lower=True) for method in THREE),
        *(Claim(f"{method}.pcb", beats=method, on="balanced accuracy") for method in THREE),
        Claim("random", beats="entropy", on="balanced accuracy", published="plain methods can be worse than random"),
    ],
    controls=("random", "zero_shot"),
    seeds=(0, 1, 2, 3, 4),
    real="foveal adapt pcb --model openai/clip-vit-base-patch32 --pool unlabeled/ --classes classes.txt --oracle ask",
    example="""
import torch
from foveal import zoo
from foveal.adapt.pcb import CoOpLearner, active_prompt_learning

names, clip = ("dog", "car", "owl"), zoo.load("nano-clip")  # or any CLIPModel with its processor
pool, labels = torch.randn(60, 128), torch.randint(3, (60,))  # features of the pool; labels are bought one by one
made = lambda: CoOpLearner(clip, names, n_ctx=4, epochs=5)
result = active_prompt_learning(made, pool, lambda asked: labels[asked], num_classes=3, rounds=2)
print(result.selected, result.models[-1].predict(pool[:4]))
""",
)
