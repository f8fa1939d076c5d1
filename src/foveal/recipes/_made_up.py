"""How much a tuned nano-llava makes up: POPE's questions, and CHAIR on detailed captions."""

from foveal.evaluate.tasks import TASKS
from foveal.lab import Run
from foveal.recipes._lvlm import answered, host
from foveal.recipes._preferences import Seen
from foveal.zoo.nano import Nano

CAPTIONS, ASKED = 64, 24
"""Held-out hard scenes that are described, and those that are asked about with four questions each."""


def made_up(run: Run, seen: Seen) -> dict[str, float]:
    """POPE's questions and detailed captions of held-out hard scenes, in percent and words."""
    run.cost(seen.model)
    nano = Nano(seen.model.eval(), run.shared(host).processor)
    items, outputs = answered(run, nano, "existence", ASKED, "hard")
    asked = {metric.name: 100 * metric.value for metric in TASKS["world-existence"].score(items, outputs).metrics}
    splits = ("random", "popular", "adversarial")
    items, outputs = answered(run, nano, "caption", CAPTIONS, "hard")
    told = {metric.name: metric.value for metric in TASKS["world-caption"].score(items, outputs).metrics}
    shares = ("CHAIR_i", "CHAIR_s", "object recall", "object precision", "object F1")
    return {
        "POPE accuracy": sum(asked[f"{split} accuracy"] for split in splits) / 3,
        "adversarial accuracy": asked["adversarial accuracy"],
        "yes share": sum(asked[f"{split} yes share"] for split in splits) / 3,
        **{name: 100 * told[name] for name in shares},
        "words": told["mean length"],
    }
