"""What decoders are judged by: objects that are asked about (POPE) and objects that are told of (CHAIR)."""

from collections.abc import Callable, Mapping
from typing import Any

from foveal.decode.base import ContrastProcessor
from foveal.evaluate.tasks import TASKS
from foveal.lab import Run
from foveal.recipes._lvlm import Options, answered, described, host
from foveal.zoo.nano import Nano

SCENES = 75
"""Held-out hard ones, each with four questions of the kind "Is there a …?"."""
Make = Callable[[Nano, Mapping[str, Any]], ContrastProcessor]


def judged(
    run: Run, options: Options | None = None, nano: Nano | None = None, scenes: int = SCENES, world: str = "hard"
) -> dict[str, float]:
    """Accuracy of yes and no for each choice of absent objects, F1, share of yes; then captions. None: nano-llava."""
    nano = nano or run.shared(host)
    items, outputs = answered(run, nano, "existence", scenes, world, options)
    found = {metric.name: 100 * metric.value for metric in TASKS["world-existence"].score(items, outputs).metrics}
    splits = ("random", "popular", "adversarial")
    marks = {f"{split} accuracy": found[f"{split} accuracy"] for split in splits}
    mean = {
        "POPE accuracy": sum(marks.values()) / 3,
        "POPE F1": sum(found[f"{split} F1"] for split in splits) / 3,
        "yes share": sum(found[f"{split} yes share"] for split in splits) / 3,
    }
    return mean | marks | described(run, nano, world, options)


def by(run: Run, make: Make) -> dict[str, float]:
    """Judged with the processor that ``make`` builds for every batch from its inputs."""
    nano = run.shared(host)
    return judged(run, lambda inputs: {"logits_processor": [make(nano, inputs)]})


def greedy(run: Run) -> dict[str, float]:
    return judged(run)


def beam(run: Run) -> dict[str, float]:
    """Two beams: as many rows in every pass as a decoder with one branch has in its two."""
    return judged(run, {"num_beams": 2})


def sampled(run: Run, temperature: float, processors: Callable[[Any], list[ContrastProcessor]]) -> dict[str, float]:
    """POPE alone, its answers drawn; processors come before the temperature."""
    nano = run.shared(host)

    def options(inputs: Any) -> dict[str, Any]:
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        return drawing | {"logits_processor": processors(inputs)}

    items, outputs = answered(run, nano, "existence", SCENES, "hard", options)
    found = {metric.name: metric.value for metric in TASKS["world-existence"].score(items, outputs).metrics}
    splits = [found[f"{split} accuracy"] for split in ("random", "popular", "adversarial")]
    return {"sampled POPE accuracy": 100 * sum(splits) / len(splits)}
