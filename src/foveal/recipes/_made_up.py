"""How much a tuned nano-llava makes up: POPE's questions, and CHAIR on detailed captions."""

from typing import Any

from foveal.evaluate.tasks import TASKS
from foveal.lab import Run
from foveal.recipes._lvlm import answered, host
from foveal.recipes._preferences import Seen
from foveal.zoo.nano import Nano

DRAWN, LIKELIEST, ASKED = 200, 96, 50
"""Held-out scenes with a drawn and with a greedy caption, and those that are asked about with four questions each."""
DRAWING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def made_up(run: Run, seen: Seen) -> dict[str, float]:
    """POPE's questions and detailed captions, drawn and greedy, in percent and words."""
    run.cost(seen.model)
    nano = Nano(seen.model.eval(), run.shared(host).processor)
    items, outputs = answered(run, nano, "existence", ASKED, "own")
    asked = {metric.name: 100 * metric.value for metric in TASKS["world-existence"].score(items, outputs).metrics}
    splits = ("random", "popular", "adversarial")
    greedy = captioned(run, nano, LIKELIEST, {})
    return {
        "POPE accuracy": sum(asked[f"{split} accuracy"] for split in splits) / 3,
        "adversarial accuracy": asked["adversarial accuracy"],
        "yes share": sum(asked[f"{split} yes share"] for split in splits) / 3,
        **captioned(run, nano, DRAWN, DRAWING),
        **{f"greedy {name}": greedy[name] for name in ("CHAIR_i", "object recall")},
    }


def captioned(run: Run, nano: Nano, scenes: int, options: dict[str, Any]) -> dict[str, float]:
    items, outputs = answered(run, nano, "caption", scenes, "own", options)
    told = {metric.name: metric.value for metric in TASKS["world-caption"].score(items, outputs).metrics}
    shares = ("CHAIR_i", "CHAIR_s", "object recall", "object precision", "object F1")
    return {**{name: 100 * told[name] for name in shares}, "words": told["mean length"]}
