"""Where the recipes about adapting a model keep accuracy, labels and trained numbers in their result files."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from foveal.lab.statistics import paired_difference

CURVE, COST = "curve", "cost"
Row = dict[str, Any]


class Task(NamedTuple):
    """One recipe's accuracy in percent, and its arms with (labels, trained numbers); the last arm is the method.

    A number is what the recipe gives the arm. `CURVE`: the steps of the metric's curve are numbers of labels; `COST`:
    the arm's cost has the trained numbers; another word is the metric that has them.
    """

    on: str
    what: str
    """The question, and what a label is."""
    arms: Mapping[str, tuple[int | str, int | str]]


TASKS = {
    "dclip": Task("invented top-1", "30 classes of unknown names; none", {"name": (0, 0), "dclip": (0, 0)}),
    "adaptclipzs": Task(
        "novel",
        "20 species; class, of 20 others",
        {"described": (0, 0), "tuned": (320, COST), "adaptclipzs": (320, COST)},
    ),
    "glov": Task("test", "20 things in noise; class", {"default": (0, 0), "drawn": (40, 0), "steered": (40, 0)}),
    "llm_bbo": Task(
        "test", "20 things in noise; class", {"pool": (20, 0), "coop": (20, COST), "smollm2.both": (20, 0)}
    ),
    "pcb": Task(
        "balanced accuracy",
        "12 things; class",
        {"zero_shot": (0, 0), **dict.fromkeys(("random", "badge", "badge.pcb"), (CURVE, COST))},
    ),
    "nmtune": Task("OOD", "4 textures, other styles; class", dict.fromkeys(("lp", "mlp", "nmtune"), (200, COST))),
    "svfit": Task(
        "accuracy",
        "4 textures; class (a new head is not counted)",
        dict.fromkeys(("head", "full", "lora.8", "lora.1", "svfit"), (400, "trained")),
    ),
    "vladva": Task(
        "swap",
        "caption against a swapped one; caption",
        {"nano_clip": (0, 0), **dict.fromkeys(("nano_clip_tuned", "both", "vladva"), (480, COST))},
    ),
    "povid": Task(
        "POPE accuracy",
        "is it there?; caption",
        {"base": (0, 0), **dict.fromkeys(("sft", "dpo", "povid"), (480, COST))},
    ),
    "stic": Task("VQA accuracy", "questions; answer", {"base": (0, 0), **dict.fromkeys(("sft", "stic"), (60, COST))}),
}


def rows_of(slug: str, result: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """A row for each arm of the result file, and what it lacks."""
    task, rows, lacking = TASKS[slug], [], []
    for name, (labels, trained) in task.arms.items():
        arm = result["arms"].get(name)
        if arm is None or task.on not in arm["metrics"]:
            lacking.append(name)
            continue
        row = {"slug": slug, "arm": name, "method": name == list(task.arms)[-1], **_accuracy(arm["metrics"][task.on])}
        course = _course(arm["curves"].get(task.on, [])) if labels == CURVE else []
        row["course"] = course
        row["labels"] = (int(course[-1][0]) if course else None) if labels == CURVE else labels
        row["trained"] = _trained(arm, trained) if isinstance(trained, str) else trained
        lacking += [f"{key} of {name}" for key in ("labels", "trained") if row[key] is None]
        rows.append(row)
    return rows, lacking


def _accuracy(values: list[float]) -> Row:
    """Mean over the seeds with its 95 % interval."""
    found = paired_difference(values, [0.0] * len(values)) if len(values) > 1 else None
    return {"accuracy": fmean(values), "interval": found and [found.low, found.high]}


def _course(curves: list[list[list[float]]]) -> list[list[float]]:
    """[labels, mean accuracy over the seeds] after each round."""
    return [[points[0][0], fmean(value for _, value in points)] for points in zip(*curves, strict=True)]


def _trained(arm: Mapping[str, Any], where: str) -> float | None:
    if where == COST:
        return arm["cost"]["trainable"]
    return fmean(arm["metrics"][where]) if where in arm["metrics"] else None
