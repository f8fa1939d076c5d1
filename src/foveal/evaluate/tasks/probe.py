"""How much is linearly readable from frozen features: a logistic regression on pictures of one thing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from foveal.data.world.vocabulary import CATEGORY
from foveal.evaluate.base import Item, Json, Scored, Setting, Task, share
from foveal.evaluate.tasks.embedding import embed, image_rows
from foveal.evaluate.tasks.zero_shot import BASE, one_thing_items
from foveal.nn.linear_probe import LinearProbe, probe_lambda_search

TRAIN = 2
"""Pictures to learn from for each one that is tested on; a quarter of them chooses the penalty."""
_WHAT = ("noun", "category")


def items(setting: Setting) -> list[Item]:
    """Pictures to learn from, then n pictures to test on, of two worlds."""
    train = Setting(TRAIN * setting.n, setting.seed)
    parts = (("train", one_thing_items(train, BASE, world=3)), ("test", one_thing_items(setting, BASE, world=4)))
    return [
        Item(
            f"{part} {item.key}",
            pictures=item.pictures,
            truth={"part": part, "noun": item.truth["label"], "category": CATEGORY[item.truth["label"]]},
        )
        for part, found in parts
        for item in found
    ]


def accuracies(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Of nouns and of their categories; chance is to name the most frequent one among the test pictures."""
    features = image_rows(outputs).numpy()
    test = np.array([item.truth["part"] == "test" for item in items])
    tested = [item for item in items if item.truth["part"] == "test"]
    metrics, rows = [], [{"key": item.key} for item in tested]
    for what in _WHAT:
        names = sorted({str(item.truth[what]) for item in items})
        labels = np.array([names.index(item.truth[what]) for item in items])
        predicted = _probe(features[~test], labels[~test]).predict(features[test])
        chance = max(Counter(labels[test].tolist()).values()) / len(tested)
        metrics.append(share(f"{what} accuracy", (predicted == labels[test]).tolist(), chance))
        for row, item, guess in zip(rows, tested, predicted):
            row |= {what: str(item.truth[what]), f"predicted {what}": names[guess]}
    return Scored(metrics, rows)


def _probe(features: np.ndarray, labels: Int[np.ndarray, " m"]) -> LinearProbe:
    """Fitted on all, with the penalty that does best on a quarter of them when fitted on the others."""
    validation = np.arange(len(labels)) % 4 == 3

    def score(penalty: float) -> float:
        return _fit(1 / penalty, features[~validation], labels[~validation]).score(
            features[validation], labels[validation]
        )

    best, _ = probe_lambda_search(score, low=-4, high=4, coarse=2, fine=1)
    return _fit(10.0**-best, features, labels)


def _fit(c: float, features: Any, labels: Any) -> LinearProbe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weak penalties do not converge, and lose
        return LinearProbe(C=c, max_iter=300).fit(features, labels)


TASKS = (
    Task(
        name="linear-probe",
        kind="dual encoder",
        summary=f"logistic regression on frozen features: {TRAIN}n scenes of one thing to learn from, n to test on",
        size=500,
        scorer="scikit-learn's logistic regression, its penalty chosen on a quarter of the training pictures",
        make=items,
        ask=embed,
        score=accuracies,
    ),
)
