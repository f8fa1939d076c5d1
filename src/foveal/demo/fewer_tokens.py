"""The same question at 100, 50, 25 and 12 % of the visual tokens: what is said, what it costs, what is still seen.

FoPru drops the patches that the vision encoder's own class token attends to least, before the language model reads
any. It was taken since on other questions it kept the most right answers at each share, at the least cost; PyramidDrop,
which begins inside the decoder, cannot come down to an eighth of its work in six layers. Beside it, as the control of
all such methods, as many patches that chance chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveal.compress.baselines import RandomDrop
from foveal.compress.fopru import FoPru
from foveal.compress.runtime import PrefillReducer
from foveal.demo.eyes import Image, Progress
from foveal.demo.host import Host
from foveal.demo.marked import invented
from foveal.demo.measure import Estimate
from foveal.demo.scenes import View, quiz
from foveal.evaluate.base import Item, share
from foveal.evaluate.tasks.answers import is_right
from foveal.evaluate.tasks.captions import PROMPT
from foveal.train.meters import count_parameters

SHARES = (1.0, 0.5, 0.25, 0.125)
METHOD = "FoPru"
SHORT, LONG = 16, 100
"""Most tokens of an answer and of a description."""
_BATCH = 16


@dataclass(frozen=True)
class Reply:
    """What was said of a picture with a share of its tokens."""

    share: float
    text: str
    right: bool | None
    """None for a description."""
    invented: tuple[str, ...]
    """Things that a description names and the picture does not hold."""
    kept: tuple[int, ...]
    """Patches in raster order that the language model has read."""
    patches: int
    flops: float
    """Share of the FLOPs that the decoder spends on the whole prompt, what the choice costs included."""


@dataclass(frozen=True)
class Asked:
    """One prompt at all `SHARES`; ``accepted`` answers are empty for a description."""

    kind: str
    prompt: str
    accepted: tuple[str, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Looked:
    """A scene, the things in it, and everything asked about it."""

    key: str
    image: Image
    objects: tuple[str, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Budget:
    """Right answers to many questions at one share, and with as many patches chosen by chance."""

    share: float
    questions: int
    right: Estimate
    random: Estimate


@dataclass(frozen=True)
class FewerTokens:
    """All that the panel shows."""

    method: str
    parameters: int
    """Of the model that is asked."""
    side: int
    """Patches along each side of a picture."""
    looked: tuple[Looked, ...]
    budgets: tuple[Budget, ...]


def compare_budgets(host: Host, shown: Sequence[View], seed: int, each: int, progress: Progress) -> FewerTokens:
    """Ask about the scenes ``shown``, then measure on ``each`` questions of every kind."""
    steps = len(shown) + len(SHARES)
    looked: list[Looked] = []
    budgets: list[Budget] = []
    items = quiz(seed, each)
    images = [item.pictures()[0] for item in items if item.pictures]
    for view in shown:
        progress("fewer visual tokens", len(looked), steps)
        looked.append(_look(host, view))
    for budget in SHARES:
        progress("fewer visual tokens", len(looked) + len(budgets), steps)
        budgets.append(_budget(host, items, images, budget, seed))
    progress("fewer visual tokens", steps, steps)
    return FewerTokens(METHOD, count_parameters(host.model), host.side, tuple(looked), tuple(budgets))


def _look(host: Host, view: View) -> Looked:
    prompts = [(question.kind, question.text, question.answers) for question in view.questions]
    asked = []
    for kind, prompt, accepted in [*prompts, ("description", PROMPT, ())]:
        replies = tuple(_reply(host, view, prompt, accepted, budget) for budget in SHARES)
        asked.append(Asked(kind, prompt, tuple(accepted), replies))
    return Looked(view.key, view.large, view.objects, tuple(asked))


def _reply(host: Host, view: View, prompt: str, accepted: Sequence[str], budget: float) -> Reply:
    inputs = host.inputs([view.small], [prompt])
    with FoPru(budget).attached(host.model) as reducer:
        text = host.say(inputs, SHORT if accepted else LONG).texts[0]
    report = reducer.report()
    return Reply(
        share=budget,
        text=text,
        right=is_right(text, accepted) if accepted else None,
        invented=() if accepted else tuple(invented(text, view.objects)),
        kept=host.patches(inputs["input_ids"][0], reducer.kept[0][-1]),
        patches=int(report.image_tokens_full),
        flops=1 - report.flops_saved,
    )


def _budget(host: Host, items: Sequence[Item], images: Sequence[Image], budget: float, seed: int) -> Budget:
    right = _right(host, items, images, FoPru(budget))
    by_chance = right if budget == 1 else _right(host, items, images, RandomDrop((0,), (budget,), seed))
    return Budget(budget, len(items), _estimate(right), _estimate(by_chance))


def _right(host: Host, items: Sequence[Item], images: Sequence[Image], reducer: PrefillReducer) -> list[bool]:
    """Whether each answer is right."""
    right = []
    with reducer.attached(host.model):
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            inputs = host.inputs(images[start : start + _BATCH], [item.texts[0] for item in batch])
            texts = host.say(inputs, SHORT).texts
            right += [is_right(text, item.truth["accepted"]) for text, item in zip(texts, batch, strict=True)]
    return right


def _estimate(hits: Sequence[bool]) -> Estimate:
    """A share with Wilson's interval."""
    metric = share("right answers", hits)
    return Estimate(metric.value, metric.low or 0.0, metric.high or 0.0)
