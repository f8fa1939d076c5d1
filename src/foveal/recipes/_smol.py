"""smol-vl, the host of the recipes about a language model of real size, and how much of its answers is right."""

from foveal import zoo
from foveal.lab import Run
from foveal.recipes._lvlm import answered, described, right
from foveal.zoo.nano import Nano

QUESTIONS = {"existence": 15, "colour": 60, "object": 60}
"""Kind -> held-out clear scenes. Of existence each scene has four questions, of the others one."""
ASIDE = {"count": 45, "relation": 45, "rec": 45}
"""What the host gets right hardly more often than whoever always says the same, or gives another picture's box."""


def host(run: Run) -> Nano:
    """For `Run.shared`."""
    return zoo.load("smol-vl")


def exam(run: Run, nano: Nano) -> dict[str, float]:
    """Percentage right of each of `QUESTIONS`, and their mean as ``accuracy``."""
    found = _marks(run, nano, QUESTIONS)
    return {"accuracy": sum(found.values()) / len(found), **found}


def aside(run: Run, nano: Nano) -> dict[str, float]:
    """What is no part of the mean: the kinds that are guessed, and captions of its own world."""
    return _marks(run, nano, ASIDE) | described(run, nano, "own")


def _marks(run: Run, nano: Nano, kinds: dict[str, int]) -> dict[str, float]:
    return {kind: right(kind, *answered(run, nano, kind, n, "clear")) for kind, n in kinds.items()}
