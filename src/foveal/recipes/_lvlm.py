"""nano-llava, the host of the recipes about visual tokens and decoding, and how much of its answers is right.

The same shipped checkpoint in every arm and at every seed; the seed chooses the held-out scenes and their questions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foveal import zoo
from foveal.compress.runtime import PrefillReducer
from foveal.evaluate.base import Item, Json
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks import TASKS
from foveal.evaluate.tasks.asking import asker
from foveal.lab import Run
from foveal.recipes._lvlm_worlds import asked
from foveal.zoo.nano import Nano

QUESTIONS = {"existence": 25, "colour": 90, "count": 90, "object": 90, "rec": 50}
"""Kind of question -> held-out clear scenes. Of existence each scene has four questions."""
GUESSED, ASKED = "relation", 90
"""A kind that the host gets right hardly more often than by chance, which says nothing about what it is shown."""
CAPTIONS = 48
BATCH = 48
Options = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


def host(run: Run) -> Nano:
    """For `Run.shared`."""
    return zoo.load("nano-llava")


def answered(
    run: Run, nano: Nano, kind: str, scenes: int, world: str, options: Options | None = None
) -> tuple[list[Item], list[Json]]:
    """The questions about a world of `foveal.recipes._lvlm_worlds`, and what the model says to each."""
    items = run.shared(asked, kind, scenes, world)
    return items, said(run, nano, kind, items, options)


def said(run: Run, nano: Nano, kind: str, items: Sequence[Item], options: Options | None = None) -> list[Json]:
    """What the model says to each question."""
    ask = asker(2) if run.smoke else TASKS[f"world-{kind}"].ask
    return ask(VisionLanguage(nano.model, nano.processor, BATCH, options), items)


def right(kind: str, items: Sequence[Item], outputs: Sequence[Json]) -> float:
    """Percentage of the answers that are right; a box is from an IoU of 0.5 on."""
    rows = TASKS[f"world-{kind}"].score(items, outputs).rows
    return 100 * sum(bool(row.get("right", row.get("iou", 0) >= 0.5)) for row in rows) / len(rows)


def exam(run: Run, nano: Nano) -> dict[str, float]:
    """Percentage right of each kind of question about clear scenes, and their mean as ``accuracy``."""
    marks = {kind: right(kind, *answered(run, nano, kind, n, "clear")) for kind, n in QUESTIONS.items()}
    return {"accuracy": sum(marks.values()) / len(marks), **marks}


def described(run: Run, nano: Nano, world: str, options: Options | None = None) -> dict[str, float]:
    """Long captions: percentages of objects named rightly and of those found, CHAIR, and words."""
    items, outputs = answered(run, nano, "caption", CAPTIONS, world, options)
    found = {metric.name: metric.value for metric in TASKS["world-caption"].score(items, outputs).metrics}
    shares = ("object precision", "object recall", "object F1", "CHAIR_i", "CHAIR_s")
    return {**{name: 100 * found[name] for name in shares}, "words": found["mean length"]}


def reduced_exam(run: Run, reducers: Mapping[str, Callable[[], PrefillReducer | None]]) -> dict[str, float]:
    """Accuracy and share of the decoder's FLOPs under each budget; single kinds and captions at the last one.

    Args:
        reducers: name of a budget -> what makes the reducer, or gives None for the unmodified host.
    """
    nano, found = run.shared(host), dict[str, float]()
    for budget, make in reducers.items():
        reducer = make()
        if reducer is not None:
            reducer.attach(nano.model)
        try:
            marks = exam(run, nano)
            last = marks | _at_last(run, nano) if budget == list(reducers)[-1] else {}
        finally:
            if reducer is not None:
                reducer.detach()
        found[f"accuracy at {budget}"] = marks.pop("accuracy")
        report = reducer and reducer.report()
        found[f"FLOPs at {budget}"] = 100 * (1 - report.flops_saved) if report else 100.0
        found |= {f"{name} at {budget}": value for name, value in last.items() if name != "accuracy"}
    return found


def _at_last(run: Run, nano: Nano) -> dict[str, float]:
    """What is asked at one budget alone: the kind that the host guesses, and captions of its own world."""
    guessed = {GUESSED: right(GUESSED, *answered(run, nano, GUESSED, ASKED, "clear"))}
    return guessed | described(run, nano, "own")
