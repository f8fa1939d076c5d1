"""GLOV: a language model searches for the wording of a prompt, and is pushed from inside towards what worked.

Mirza et al., *GLOV: Guided Large Language Models as Implicit Optimizers for Vision Language Models*, arXiv 2410.06154.

Each step shows the best and the worst prompts so far with their few-shot accuracies and asks for new ones. As soon as
one beats the initial prompt, the rest is written while

    α · (e_l(P⁺) − e_l(P⁻))

is added to the output of block l for the current token: P⁺ is the best prompt, P⁻ the second best, e_l the mean hidden
state (`foveal.nn.steering`). No weight changes. The final classifier averages the text features of the best prompts.

Departures from the release, which multiplies the offset by α at every token anew, pads the shorter of P⁺ and P⁻ before
it averages, lets repeated prompts and prompts without placeholder into the pool, and recomputes the whole sequence at
every token: here α is constant, each prompt is averaged over its own tokens, such prompts are dropped, and a cache of
keys and values may be used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveal.adapt.base_search import Chat, finite_score
from foveal.llm import Turn
from foveal.nn.cosine import unit_rows
from foveal.nn.steering import LayerSteering, offset_vector, sentence_embedding
from foveal.nn.zero_shot import build_zero_shot_classifier, zero_shot_logits

__all__ = [
    "GLOVOptimizer",
    "GLOVResult",
    "LayerSteering",
    "SteerableLM",
    "build_meta_prompt",
    "caption_accuracy",
    "contrast_pair",
    "offset_vector",
    "parse_template",
    "rank_prompts",
    "sentence_embedding",
    "template_weights",
    "top1_accuracy",
]

PLACEHOLDER = "<category>"
LONGEST_REPLY, LONGEST_STEERED = 50, 75
"""Tokens, plain and under steering, as in the release; a template needs a third of them."""
MARKER = re.compile(r"\s*(?:[-*•]|\d+[.)](?!\d))\s*")
QUOTES = " \t\r\n\"'`“”‘’„«»"

Scored = tuple[str, float]
"""A prompt and its accuracy in percent."""


class SteerableLM(Chat, Protocol):
    """A language model whose answers can be pushed from one text towards another while it writes them."""

    def steer(
        self, positive: str, negative: str, *, alpha: float = 1.0, layer: int | None = None
    ) -> AbstractContextManager[object]:
        """While entered, answers are steered from ``negative`` to ``positive`` at a block (None: a good default)."""


# Prompts and their ranks ----------------------------------------------------------------------------------------------


def rank_prompts(prompts: Sequence[str], scores: Sequence[float], k: int = 5) -> tuple[list[Scored], list[Scored]]:
    """The ``k`` best and the ``k`` worst prompts (half of all at most), both in ascending order of their scores.

    Prompts of one score stay in the order in which they were found.
    """
    pool = _pool(prompts, scores)
    if k < 0:
        raise ValueError(f"k={k}: must not be negative")
    k = min(k, len(pool) // 2)
    order = sorted(pool, key=lambda entry: entry[1])
    return order[len(order) - k :], order[:k]


def contrast_pair(prompts: Sequence[str], scores: Sequence[float]) -> tuple[str, str] | None:
    """P⁺ and P⁻: the first prompt with the highest score, the last one with the score next below.

    None when all scores are equal.
    """
    pool = _pool(prompts, scores)
    best = max((score for _, score in pool), default=0.0)
    below = [score for _, score in pool if score < best]
    if not below:
        return None
    positive = next(prompt for prompt, score in pool if score == best)
    return positive, [prompt for prompt, score in pool if score == max(below)][-1]


def _pool(prompts: Sequence[str], scores: Sequence[float]) -> list[Scored]:
    if isinstance(prompts, str) or len(prompts) != len(scores):
        raise ValueError(f"prompts ({len(prompts)}) and scores ({len(scores)}) must be two lists of one length")
    return [(prompt, finite_score(score, prompt)) for prompt, score in zip(prompts, scores, strict=True)]


def parse_template(reply: str, placeholder: str = PLACEHOLDER) -> str | None:
    """The template in a reply: its last line with the placeholder, without list marker, introduction and quotes.

    What stands before the last ":" that precedes the placeholder is an introduction. None without such a line.
    """
    lines = [line for line in reply.splitlines() if placeholder in line]
    if not lines:
        return None
    line = MARKER.sub("", lines[-1], count=1) if MARKER.match(lines[-1]) else lines[-1]
    line = line[line.rfind(":", 0, line.index(placeholder)) + 1 :]
    return line.strip(QUOTES)


def build_meta_prompt(
    dataset: str,
    description: str,
    step: int,
    *,
    initial: Scored | None = None,
    top: Sequence[Scored] = (),
    bottom: Sequence[Scored] = (),
    placeholder: str = PLACEHOLDER,
) -> list[Turn]:
    """A system and a user message that ask for one new template.

    Args:
        step: of the search, from 0. The message depends on it through ``top`` alone.
        initial: prompt and accuracy in percent, shown as long as there is no ``top``.
        top: the best ones, best last, as from `rank_prompts`.
        bottom: the worst ones, worst first.
    """
    if step < 0:
        raise ValueError(f"step={step}: must not be negative")
    if not top and initial is None:
        raise ValueError("initial=None: give the initial prompt and its accuracy as long as top is empty")
    said = [f"The dataset is called {dataset}. {description}".strip()]
    if top:
        said += ["These templates are the best so far, with their accuracies in percent, the best one last:"]
        said += _listed(top)
        if bottom:
            said += ["These templates are the worst so far, the worst one first:", *_listed(bottom)]
    elif initial is not None:
        said += ["The first template and its accuracy in percent:", *_listed([initial])]
    said += [
        f"Write ONE new template that reaches a higher accuracy. It must contain {placeholder}, where the name of the "
        "class is put. Answer with the template alone, in one line."
    ]
    system = (
        "You improve the prompt templates of a vision-language model that classifies images: an image is compared with "
        f"the template once for every class, {placeholder} being replaced by its name. You answer with a template only."
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(said)}]


def _listed(pool: Iterable[Scored]) -> list[str]:
    # the accuracy comes first, before a colon: models copy the form, and `parse_template` drops what stands there
    return [f"accuracy {int(score)}: {prompt}" for prompt, score in pool]


# What a prompt is worth -----------------------------------------------------------------------------------------------


def template_weights(
    encode_text: Callable[[list[str]], Float[Tensor, "n d"]],
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    placeholder: str = PLACEHOLDER,
) -> Float[Tensor, "k d"]:
    """Unit class features: normalised text features, averaged over the templates.

    Underscores in names are written as spaces. Templates without placeholder are skipped; ValueError when none is left.
    """
    usable = [template for template in templates if placeholder in template]
    if not usable:
        raise ValueError(f"templates={list(templates)!r}: none contains {placeholder!r}")
    names = [name.replace("_", " ") for name in class_names]
    return build_zero_shot_classifier(encode_text, names, [partial(_fill, text, placeholder) for text in usable])


def _fill(template: str, placeholder: str, name: str) -> str:
    return template.replace(placeholder, name)


def top1_accuracy(
    image_features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], weights: Float[Tensor, "k d"]
) -> float:
    """Percent of images whose class has the highest cosine; ``weights`` are unit rows (`template_weights`).

    ValueError for shapes that do not fit and features that are not finite.
    """
    classes = _checked_labels(labels, len(image_features), "images")
    if not bool(weights.isfinite().all()):
        raise ValueError("weights holds NaN or infinity: check the text encoder's output")
    found = zero_shot_logits(image_features, weights).argmax(1)
    return 100.0 * (found == classes).double().mean().item()


def caption_accuracy(
    answers: Sequence[str],
    labels: Int64[Tensor, " n"],
    class_names: Sequence[str],
    embed: Callable[[list[str]], Float[Tensor, "n d"]],
) -> float:
    """Percent of a generative model's answers whose nearest class name, by sentence embeddings, is the right one.

    ValueError for labels that do not fit and embeddings that are not finite.
    """
    classes = _checked_labels(labels, len(answers), "answers")
    names = embed([name.replace("_", " ") for name in class_names])
    said = embed(list(answers))
    if not bool(names.isfinite().all() and said.isfinite().all()):
        raise ValueError("embed gave NaN or infinity: check the sentence encoder")
    return top1_accuracy(said, classes, unit_rows(names))


def _checked_labels(labels: Int64[Tensor, " n"], count: int, things: str) -> Int64[Tensor, " n"]:
    classes = torch.as_tensor(labels)
    if classes.shape != (count,) or not count:
        raise ValueError(f"labels {tuple(classes.shape)}: give one for each of {count} {things}, and at least one")
    return classes


# The search -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GLOVResult:
    """What a search found; scores are fitness, on the shots."""

    best: str
    """The earliest prompt with the highest score."""
    best_score: float
    ensemble: list[str]
    """The best prompts, best first, to be averaged by `template_weights`."""
    history: list[tuple[int, str, float]]
    """Step, prompt, score of every distinct prompt in the order of its finding; the initial one is of step -1."""
    steered_steps: list[int]
    """Steps whose replies were written under steering."""


class GLOVOptimizer:
    """The search. ``lm`` is steered if it has ``steer`` (`SteerableLM`), and asked plainly if not.

    Args:
        lm: writes the prompts, at temperature 1. The paper draws with top-k 50 and top-p 0.9:
            ``foveal.llm.HFLM(model, tokenizer, top_k=50, top_p=0.9)``.
        fitness: accuracy in percent of a prompt on the shots; called once for each distinct prompt.
        dataset: its name, description: one or two sentences on its pictures; both for the language model to read.
        steps: of ``per_step`` replies each.
        k: how many of the best and of the worst prompts are shown; 0 asks in every step as in the first one.
        alpha: of the steering; 0 does without, a negative one pushes away from the best prompt.
        layer: block that is steered, from 0; None: 17/32 of the way up.
        ensemble: how many prompts the result's ensemble has.
        seed: reply j of step t is drawn with ``seed + t * per_step + j``.
    """

    def __init__(
        self,
        lm: Chat,
        fitness: Callable[[str], float],
        dataset: str,
        description: str,
        *,
        steps: int = 100,
        per_step: int = 10,
        k: int = 5,
        alpha: float = 1.0,
        layer: int | None = None,
        ensemble: int = 3,
        initial: str = "a photo of a <category>.",
        seed: int = 0,
    ) -> None:
        counts = {"steps": (steps, 1), "per_step": (per_step, 1), "k": (k, 0), "ensemble": (ensemble, 1)}
        for name, (value, least) in counts.items():
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha}: must be a finite number")
        if PLACEHOLDER not in initial:
            raise ValueError(f"initial={initial!r}: must contain {PLACEHOLDER}, where the name of the class is put")
        self.lm, self.fitness, self.dataset, self.description = lm, fitness, dataset, description
        self.steps, self.per_step, self.k, self.alpha = steps, per_step, k, alpha
        self.layer, self.ensemble, self.initial, self.seed = layer, ensemble, initial, seed

    def run(self) -> GLOVResult:
        """Search from the initial prompt on. The same seed, model and fitness give the same result."""
        pool = {self.initial: finite_score(self.fitness(self.initial), self.initial)}
        history = [(-1, self.initial, pool[self.initial])]
        pair: tuple[str, str] | None = None
        steered: list[int] = []
        for step in range(self.steps):
            best = max(pool.values())
            context = self._steering(pair)
            if context is not None:
                steered.append(step)
            with nullcontext() if context is None else context:
                replies = self._replies(step, pool, LONGEST_REPLY if context is None else LONGEST_STEERED)
            for template in filter(None, map(parse_template, replies)):
                if template not in pool:
                    pool[template] = finite_score(self.fitness(template), template)
                    history.append((step, template, pool[template]))
            if max(pool.values()) > best:
                pair = contrast_pair(list(pool), list(pool.values()))
        ranked = sorted(pool, key=pool.__getitem__, reverse=True)  # stable: the earliest of equals comes first
        return GLOVResult(ranked[0], pool[ranked[0]], ranked[: self.ensemble], history, steered)

    def _steering(self, pair: tuple[str, str] | None) -> AbstractContextManager[object] | None:
        steer = getattr(self.lm, "steer", None)
        if pair is None or self.alpha == 0 or steer is None:
            return None
        return steer(*pair, alpha=self.alpha, layer=self.layer)

    def _replies(self, step: int, pool: dict[str, float], longest: int) -> list[str]:
        top, bottom = rank_prompts(list(pool), list(pool.values()), self.k)
        initial = (self.initial, pool[self.initial])
        messages = build_meta_prompt(self.dataset, self.description, step, initial=initial, top=top, bottom=bottom)
        first = self.seed + step * self.per_step
        return [
            self.lm.complete(messages, max_new_tokens=longest, temperature=1.0, seed=first + reply)
            for reply in range(self.per_step)
        ]
