"""NMTune: does a wrong label in ten change the features for good, and can a small MLP on top make up for it?

Small CNNs (three convolutions, 256 features) learn 64 classes of shape and colour at 32 px, of which 0, 5, 10 or 30 %
are wrong. *noise.…* look at the frozen features: ``SVE`` and ``LSVR`` of 1,500 clean pictures; ``probe ID`` and ``probe
OOD``: textures by a linear probe, on pictures as in pretraining and in three other styles.

The others learn textures from 200 pictures on the features of all four CNNs; ``ID`` and ``OOD`` are means over them, in
percent. *lp*: linear; *mlp*: NMTune's network without its terms; *nmtune*: released weights; *nmtune.without_…*: one
term left out; *nmtune.tuned*: each weight also tried at a tenth and at ten times as much. All choose the best of three
learning rates by ID pictures for validation, and train for as many steps. *untrained*: the CNN before pretraining.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from foveal.adapt.nmtune import NMTuneClassifier, largest_singular_value_ratio, singular_value_entropy
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._noisy_features import NOISE, STYLES, Sets, features, percent_right

RELEASED = (1.0, 0.04, 0.001)
RATES = {"lp": (3e-3, 1e-2, 3e-2), "mlp": (3e-4, 1e-3, 3e-3), "nmtune": (3e-4, 1e-3, 3e-3)}
Weights = tuple[float, ...]


def fitted(run: Run, sets: Sets, method: str, lr: float, weights: Weights = RELEASED) -> NMTuneClassifier:
    options: Any = {"method": method, "lr": lr, "weights": weights, "epochs": run.steps(30), "seed": run.seed}
    return NMTuneClassifier(4, rescale=True, **options).fit(*sets["train"])


def chosen(sets: Sets, tried: list[NMTuneClassifier]) -> NMTuneClassifier:
    return max(tried, key=lambda one: percent_right(one, sets, ["validation"]))


def best(run: Run, sets: Sets, method: str, weights: Weights, tuned: bool = False) -> NMTuneClassifier:
    found = chosen(sets, [fitted(run, sets, method, lr, weights) for lr in RATES[method]])
    for term in range(3 if tuned else 0):
        values = [tuple(w * (factor if i == term else 1) for i, w in enumerate(found.weights)) for factor in (0.1, 10)]
        found = chosen(sets, [found, *(fitted(run, sets, method, found.lr, value) for value in values)])
    return found


def tune(run: Run, method: str, weights: Weights = RELEASED, tuned: bool = False) -> dict[str, float]:
    scores = []
    for percent in NOISE:
        sets = run.shared(features, percent)
        found = best(run, sets, method, weights, tuned)
        scores.append([percent_right(found, sets, names) for names in (["test"], STYLES)])
    learnt = nn.ModuleList(part for part in (found.mlp_, found.head_) if part)
    run.cost(learnt.requires_grad_())  # a fitted model is frozen, but this is what was trained
    return dict(zip(("ID", "OOD"), torch.tensor(scores).mean(0).tolist(), strict=True))


def probed(run: Run, percent: int | None) -> tuple[Sets, dict[str, float]]:
    sets = run.shared(features, percent)
    probe = best(run, sets, "lp", RELEASED)
    return sets, {name: percent_right(probe, sets, of) for name, of in (("ID", ["test"]), ("OOD", STYLES))}


def looked_at(run: Run, percent: int) -> dict[str, float]:
    sets, scores = probed(run, percent)
    seen = sets["test"][0]
    measures = {"SVE": singular_value_entropy(seen), "LSVR": largest_singular_value_ratio(seen)}
    return measures | {f"probe {name}": score for name, score in scores.items()}


RECIPE = Recipe(
    paper="nmtune",
    arms={
        "untrained": lambda run: probed(run, None)[1],
        **{f"noise.{percent}": partial(looked_at, percent=percent) for percent in NOISE},
        "lp": partial(tune, method="lp"),
        "mlp": partial(tune, method="mlp"),
        "nmtune": partial(tune, method="nmtune"),
        "nmtune.without_consistency": partial(tune, method="nmtune", weights=(0.0, 0.04, 0.001)),
        "nmtune.without_covariance": partial(tune, method="nmtune", weights=(1.0, 0.0, 0.001)),
        "nmtune.without_dominant": partial(tune, method="nmtune", weights=(1.0, 0.04, 0.0)),
        "nmtune.tuned": partial(tune, method="nmtune", tuned=True),
    },
    claims=[
        *(Claim(f"noise.{b}", beats=f"noise.{a}", on=on) for on in ("SVE", "LSVR") for a, b in ((0, 10), (10, 30))),
        Claim("noise.5", beats="noise.0", on="probe ID", published="slight noise helps in the domain"),
        Claim("noise.0", beats="noise.30", on="probe OOD", published="any noise hurts out of it"),
        Claim("nmtune", beats="mlp", on="OOD", published="NMTune > MLP > LP, ResNet-50 and CLIP"),
        Claim("nmtune", beats="lp", on="ID"),
        Claim("nmtune", beats="lp", on="OOD"),
    ],
    controls=("untrained", "mlp"),
    real="foveal run nmtune",
    example="""
import torch
from foveal.adapt.nmtune import NMTuneClassifier, largest_singular_value_ratio, singular_value_entropy

features, labels = torch.randn(200, 64), torch.arange(200) % 4  # of any frozen encoder, computed once
print(singular_value_entropy(features), largest_singular_value_ratio(features))
print(NMTuneClassifier(4, rescale=True).fit(features, labels).score(features, labels))
""",
)
