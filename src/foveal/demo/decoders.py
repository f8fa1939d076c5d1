"""What nano-llava says with and without decoders that look at the picture a second time, all greedy.

Every decoder is a ``logits_processor`` of the model's own ``generate``, with the settings of its paper. VDD runs
without the picture alone: nano-llava has no ``<unk>`` to put in its place. AGLA's matcher is nano-clip, which gets a
question as it is, and instead of "describe this image", which names nothing to look for, the greedy description.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.data.world.phrases import ALIKE
from foveal.decode.agla import AglaLogitsProcessor, augmented_view
from foveal.decode.base import ContrastProcessor, image_features
from foveal.decode.damro import DamroLogitsProcessor, outlier_branch_inputs
from foveal.decode.debias import DebiasLogitsProcessor
from foveal.demo.eyes import Image, Progress
from foveal.demo.host import Host
from foveal.demo.marked import invented
from foveal.demo.matcher import PatchMatcher
from foveal.demo.measure import Estimate
from foveal.demo.scenes import View
from foveal.evaluate.base import Setting
from foveal.evaluate.tasks.answers import is_right
from foveal.evaluate.tasks.captions import PROMPT, caption_metrics, world_items
from foveal.evaluate.tasks.mentions import world_lexicon

GREEDY, VDD, DAMRO, AGLA = "greedy", "VDD", "DAMRO", "AGLA"
DECODERS = (GREEDY, VDD, DAMRO, AGLA)
OUTLIERS = 10
"""Patches of DAMRO's second look, as in its paper."""
SHORT, LONG = 16, 100
"""Most tokens of an answer and of a description."""


@dataclass(frozen=True)
class Told:
    """An answer to the question and a description of one scene by one decoder."""

    decoder: str
    answer: str
    right: bool
    description: str
    invented: tuple[str, ...]


@dataclass(frozen=True)
class Heard:
    """A scene with what DAMRO's and AGLA's second looks see of it, and what each decoder says."""

    key: str
    image: Image
    objects: tuple[str, ...]
    question: str
    accepted: tuple[str, ...]
    outliers: tuple[int, ...]
    """Patches in raster order."""
    view: Image
    """What AGLA leaves of the picture for the description, as large as the model sees it."""
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Habit:
    """One decoder over all descriptions. Means over scenes, with bootstrap intervals."""

    decoder: str
    descriptions: int
    invented: Estimate
    """Share of the things it names that are not there: CHAIR_i."""
    found: Estimate
    """Share of the things that are there which it names."""
    words: float
    forwards: float
    """Passes of the language model for each token of the longest description."""
    seconds: float
    """For all descriptions, written in one batch."""


@dataclass(frozen=True)
class Decoders:
    """All that the panel shows."""

    side: int
    heard: tuple[Heard, ...]
    habits: tuple[Habit, ...]


def compare_decoders(
    host: Host, matcher: PatchMatcher, shown: Sequence[View], seed: int, more: int, progress: Progress
) -> Decoders:
    """Ask and describe the scenes ``shown`` by every decoder, and describe ``more`` scenes for the shares."""
    items = world_items(Setting(more, seed))
    images = [view.small for view in shown]
    every = [*images, *(item.pictures()[0] for item in items if item.pictures)]
    objects = [*(list(view.objects) for view in shown), *(item.truth["objects"] for item in items)]
    questions = [view.questions[0].text for view in shown]
    asked, described = host.inputs(images, questions), host.inputs(every, [PROMPT] * len(every))
    answers: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    habits = []
    for done, decoder in enumerate(DECODERS):
        progress("decoders", done, len(DECODERS))
        views = agla_views(matcher, images, questions) if decoder == AGLA else []
        answers[decoder] = _say(host, decoder, asked, views, SHORT)[0]
        started = time.perf_counter()
        views = agla_views(matcher, every, texts[GREEDY]) if decoder == AGLA else []
        texts[decoder], forwards = _say(host, decoder, described, views, LONG)
        habits.append(_habit(decoder, texts[decoder], objects, forwards, time.perf_counter() - started))
    progress("decoders", len(DECODERS), len(DECODERS))
    views, outliers = agla_views(matcher, images, texts[GREEDY][: len(images)]), _outliers(host, described)
    heard = [
        Heard(
            key=view.key,
            image=view.large,
            objects=view.objects,
            question=view.questions[0].text,
            accepted=view.questions[0].answers,
            outliers=outliers[row],
            view=views[row],
            told=tuple(_told(name, view, answers[name][row], texts[name][row]) for name in DECODERS),
        )
        for row, view in enumerate(shown)
    ]
    return Decoders(host.side, tuple(heard), tuple(habits))


def agla_views(matcher: PatchMatcher, images: Sequence[Image], texts: Sequence[str]) -> list[Image]:
    """Each picture with everything black that its text is not about."""
    processor = matcher.processor
    words = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    pixels = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    maps, likeness = matcher(pixels, words["input_ids"], words["attention_mask"])
    views = []
    for image, cam, cosine in zip(images, maps, likeness.tolist(), strict=True):
        view, _ = augmented_view(torch.from_numpy(image).permute(2, 0, 1) / 255, cam, cosine)
        views.append((255 * view).round().byte().permute(1, 2, 0).numpy())
    return views


def _say(
    host: Host, decoder: str, inputs: dict[str, Tensor], views: list[Image], longest: int
) -> tuple[list[str], float]:
    """Texts, and passes of the language model for each token. ``views`` are AGLA's."""
    processors = _processors(host, decoder, inputs, views)
    spoken = host.say(inputs, longest, processors)
    extra = sum(processor.forwards for processor in processors)
    return spoken.texts, (spoken.tokens + extra) / spoken.tokens


def _processors(host: Host, decoder: str, inputs: dict[str, Tensor], views: list[Image]) -> list[ContrastProcessor]:
    prompts: Any = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if decoder == VDD:
        return [DebiasLogitsProcessor(host.model, **prompts, mode="none")]
    if decoder == DAMRO:
        pixels = inputs["pixel_values"]
        return [DamroLogitsProcessor(host.model, **prompts, pixel_values=pixels, top_k=_outlier_count(host))]
    if decoder == AGLA:
        return [AglaLogitsProcessor(host.model, **prompts, pixel_values=host.pixels(views))]
    return []


def _outlier_count(host: Host) -> int:
    return min(OUTLIERS, host.side**2)


def _outliers(host: Host, inputs: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """The patches of DAMRO's second look, recognised by their features in its prompt."""
    prompts: Any = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    branch = outlier_branch_inputs(host.model, **prompts, top_k=_outlier_count(host))["inputs_embeds"]
    found = []
    for row, features in zip(branch, image_features(host.model, pixel_values=prompts["pixel_values"]), strict=True):
        distance = torch.cdist(features.detach(), row).amin(1)
        found.append(tuple(sorted(distance.argsort()[: _outlier_count(host)].tolist())))
    return found


def _told(decoder: str, view: View, answer: str, description: str) -> Told:
    right = is_right(answer, view.questions[0].answers)
    return Told(decoder, answer, right, description, tuple(invented(description, view.objects)))


def _habit(
    decoder: str, texts: Sequence[str], objects: Sequence[Sequence[str]], forwards: float, seconds: float
) -> Habit:
    metrics, _ = caption_metrics(texts, objects, world_lexicon(), lambda noun: ALIKE[noun])
    values = {metric.name: metric for metric in metrics}

    def estimate(name: str) -> Estimate:
        metric = values[name]
        return Estimate(metric.value, metric.low or 0.0, metric.high or 0.0)

    words = values["mean length"].value
    return Habit(decoder, len(texts), estimate("CHAIR_i"), estimate("object recall"), words, forwards, seconds)
