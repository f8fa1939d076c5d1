"""Language models as black-box optimisers: hill climbing for a prompt of which nothing is seen but its accuracy.

Liu et al., *Language Models as Black-Box Optimizers for Vision-Language Models*, CVPR 2024, arXiv 2309.05950.

A conversation starts from a random set of templates. In each iteration the language model sees the k best and the k
worst of the set (by few-shot accuracy), is asked for better ones, and what it answers joins the set: bad examples are
the other end of an implicit gradient. The set is reset several times, then drawn anew. The same loop, with a critic's
words instead of an accuracy, improves the prompt of a text-to-image model.

Departures from the release: a reply counts for its first ``n_new`` templates only, so that the budget holds; the search
may end after ``max_calls`` calls of the language model, with those that gave nothing counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveal.adapt.base_search import Chat, finite_score
from foveal.adapt.llm_bbo_pool import DEFAULT_POOL
from foveal.llm import Turn
from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import zero_shot_logits

__all__ = [
    "DEFAULT_POOL",
    "ImagePromptRefiner",
    "PromptHillClimber",
    "RefineResult",
    "SearchResult",
    "feedback_messages",
    "parse_templates",
    "template_accuracy",
    "top_bottom",
]

Mode = Literal["both", "positive", "none"]
TOKENS_EACH = 48
"""Room in a reply for each template."""


def parse_templates(reply: str, placeholder: str = "{}") -> list[str] | None:
    """The templates of a reply: its lines that begin with "- ", each once.

    None when there is no such line, or when any of them lacks the placeholder or has another brace.
    """
    found: dict[str, None] = {}
    for line in reply.splitlines():
        if not line.startswith("- "):
            continue
        template = line[2:].strip()
        rest = template.replace(placeholder, " ").replace("{}", " ")  # a blank: nothing grows together to a new "{}"
        if placeholder not in template or "{" in rest or "}" in rest:
            return None
        found[template] = None
    return list(found) or None


def top_bottom(pool: Sequence[tuple[str, float]], k: int) -> tuple[list[str], list[str]]:
    """The ``k`` best templates, best first, and the ``k`` worst, worst first.

    Of equal scores the earlier counts as better. ValueError when k < 1 or when the two would overlap.
    """
    if k < 1 or 2 * k > len(pool):
        raise ValueError(f"k={k}: must be at least 1 and at most half of the {len(pool)} templates in the pool")
    order = [template for template, _ in sorted(pool, key=lambda entry: -finite_score(entry[1], entry[0]))]
    return order[:k], order[::-1][:k]


def feedback_messages(
    good: Sequence[str],
    bad: Sequence[str],
    *,
    n: int = 1,
    mode: Mode = "both",
    max_words: int = 15,
    placeholder: str = "{}",
) -> list[Turn]:
    """One user message that asks for ``n`` templates better than the good ones and unlike the bad ones.

    Args:
        mode: "both"; "positive" shows the good ones only; "none" shows no template at all.
    """
    _check_mode(mode)
    if n < 1 or max_words < 1:
        raise ValueError(f"n={n}, max_words={max_words}: both must be at least 1")
    said = [f"A template turns the name of a class, put in the place of {placeholder}, into the caption of an image."]
    if mode != "none":
        said += ["", "These templates are good:", *good]
    if mode == "both":
        said += ["", "These templates are bad:", *bad]
    many = "template" if n == 1 else "templates"
    wish = {
        "both": f"Find out what makes a template good or bad, and write {n} better {many}.",
        "positive": f"Find out what makes a template good, and write {n} better {many}.",
        "none": f"Write {n} good {many}.",
    }[mode]
    said += ["", wish, f"Use at most {max_words} words and keep {placeholder} in each template."]
    if mode != "none":
        said += ["Stay close to the structure of the templates above."]
    said += ['Answer with nothing but lines that start with "- ", one for each template.']
    return [{"role": "user", "content": "\n".join(said)}]


def template_accuracy(
    image_features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], text_features: Float[Tensor, "k d"]
) -> float:
    """Share of images, in [0, 1], whose class has the text with the highest cosine; both sides are normalised here.

    ValueError for shapes that do not fit and features that are not finite.
    """
    classes = torch.as_tensor(labels)
    if classes.shape != (len(image_features),) or not len(classes):
        raise ValueError(
            f"labels {tuple(classes.shape)}: give one for each of {len(image_features)} images, and at least one"
        )
    if not bool(text_features.isfinite().all()):
        raise ValueError("text_features holds NaN or infinity: check the text encoder's output")
    found = zero_shot_logits(image_features, unit_rows(text_features)).argmax(1)
    return (found == classes).double().mean().item()


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the earliest template with the highest score of all that were scored.
        trace: of each iteration ``restart``, ``reset``, ``iteration``, ``new`` (templates that joined the set) and
            ``best`` (the best score so far).
        n_lm_calls: replies, those of no use counted.
        n_evaluations: distinct templates that were scored.
    """

    best: str
    best_score: float
    trace: list[dict[str, Any]]
    n_lm_calls: int
    n_evaluations: int


@dataclass
class _Search:
    """Of one `PromptHillClimber.run`: what it has scored, asked and noted."""

    first_seed: int
    scores: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    trace: list[dict[str, Any]] = field(default_factory=list)


class PromptHillClimber:
    """The search.

    Args:
        score: few-shot accuracy of a template; called once for each distinct template of a run.
        lm: writes the templates.
        n_restart: random sets of ``sample_size`` templates that are drawn.
        n_reset: times that each of them is started from, without what the language model had added.
        n_iter: requests from each start.
        k: how many good and how many bad templates are shown.
        n_new: templates that one request asks for.
        mode: see `feedback_messages`.
        max_retries: calls that one request may take until a reply is valid; then its iteration is lost.
        temperature: of the language model.
        max_calls: end after so many calls; None: when all iterations are done.
    """

    def __init__(
        self,
        score: Callable[[str], float],
        lm: Chat,
        *,
        n_restart: int = 20,
        n_reset: int = 50,
        n_iter: int = 10,
        sample_size: int = 100,
        k: int = 15,
        n_new: int = 1,
        mode: Mode = "both",
        max_retries: int = 15,
        temperature: float = 1.0,
        max_calls: int | None = None,
    ) -> None:
        counts = {"n_restart": n_restart, "n_reset": n_reset, "n_iter": n_iter, "sample_size": sample_size, "k": k}
        counts |= {"n_new": n_new, "max_retries": max_retries}
        for name, value in (counts if max_calls is None else counts | {"max_calls": max_calls}).items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        _check_mode(mode)
        self.score, self.lm = score, lm
        self.n_restart, self.n_reset, self.n_iter = n_restart, n_reset, n_iter
        self.sample_size, self.k, self.n_new, self.mode = sample_size, k, n_new, mode
        self.max_retries, self.temperature, self.max_calls = max_retries, temperature, max_calls

    def run(self, initial_pool: Sequence[str], generator: torch.Generator) -> SearchResult:
        """Climb from random sets of ``initial_pool``, repeats in which count once.

        ``generator`` draws these sets and the seeds of the replies; the same one gives the same result.

        Raises ValueError for a pool smaller than ``sample_size``, or a ``sample_size`` smaller than 2 k.
        """
        pool = list(dict.fromkeys(initial_pool))
        if len(pool) < self.sample_size:
            raise ValueError(
                f"initial_pool has {len(pool)} different templates, fewer than sample_size={self.sample_size}"
            )
        if 2 * self.k > self.sample_size:
            raise ValueError(f"k={self.k}: twice as many must be at most sample_size={self.sample_size}")
        sets = [torch.randperm(len(pool), generator=generator)[: self.sample_size] for _ in range(self.n_restart)]
        search = _Search(int(torch.randint(2**31, (), generator=generator)))
        for restart, indices in enumerate(sets):
            for reset in range(self.n_reset):
                if not self._exhausted(search):
                    self._climb(search, [pool[index] for index in indices.tolist()], restart, reset)
        best = max(search.scores, key=search.scores.__getitem__)
        return SearchResult(best, search.scores[best], search.trace, search.calls, len(search.scores))

    def _climb(self, search: _Search, start: list[str], restart: int, reset: int) -> None:
        current = {template: self._scored(search, template) for template in start}
        for iteration in range(self.n_iter):
            if self._exhausted(search):
                return
            new = [template for template in self._ask(search, current) if template not in current]
            current |= {template: self._scored(search, template) for template in new}
            place = {"restart": restart, "reset": reset, "iteration": iteration}
            search.trace.append({**place, "new": new, "best": max(search.scores.values())})

    def _scored(self, search: _Search, template: str) -> float:
        if template not in search.scores:
            search.scores[template] = finite_score(self.score(template), template)
        return search.scores[template]

    def _ask(self, search: _Search, current: dict[str, float]) -> list[str]:
        """New templates, or none when no reply was valid."""
        good, bad = top_bottom(list(current.items()), self.k)
        messages = feedback_messages(good, bad, n=self.n_new, mode=self.mode)
        for _ in range(self.max_retries):
            if self._exhausted(search):
                break
            seed = search.first_seed + search.calls
            search.calls += 1
            tokens = TOKENS_EACH * self.n_new
            reply = self.lm.complete(messages, max_new_tokens=tokens, temperature=self.temperature, seed=seed)
            if (templates := parse_templates(reply)) is not None:
                return templates[: self.n_new]
        return []

    def _exhausted(self, search: _Search) -> bool:
        return self.max_calls is not None and search.calls >= self.max_calls


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(get_args(Mode))}")


@dataclass(frozen=True)
class RefineResult:
    """All prompts and images of a refinement; ``best`` is the prompt of the highest score, of equals the earliest."""

    best: str
    best_step: int
    prompts: list[str]
    scores: list[float]
    images: list[Any]


class ImagePromptRefiner:
    """A text-to-image model's prompt, rewritten by a language model that is told what the last image shows.

    Args:
        generate: prompt -> image, of any kind.
        describe: image -> what a captioner, or a critic, says about it.
        lm: rewrites the prompt.
        score: image -> how well it fits the request; chooses the result and is not shown to ``lm``.
        temperature: of ``lm``.
    """

    def __init__(
        self,
        generate: Callable[[str], Any],
        describe: Callable[[Any], str],
        lm: Chat,
        *,
        score: Callable[[Any], float],
        temperature: float = 0.0,
    ) -> None:
        self.generate, self.describe, self.lm = generate, describe, lm
        self.score, self.temperature = score, temperature

    def run(self, request: str, *, initial_prompt: str, steps: int = 3) -> RefineResult:
        """``steps`` images of as many prompts, ``initial_prompt`` the first; an empty reply keeps the prompt."""
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        prompts, scores, images = [initial_prompt], [], []
        for step in range(steps):
            images.append(self.generate(prompts[-1]))
            scores.append(finite_score(self.score(images[-1]), prompts[-1]))
            if step < steps - 1:
                messages = _critique(request, prompts[-1], self.describe(images[-1]))
                reply = self.lm.complete(messages, temperature=self.temperature, seed=step).strip()
                prompts.append(reply or prompts[-1])
        best = scores.index(max(scores))
        return RefineResult(prompts[best], best, prompts, scores, images)


def _critique(request: str, prompt: str, shown: str) -> list[Turn]:
    said = (
        f"An image is wanted: {request}\nThe prompt was: {prompt}\nThe image that a text-to-image model made of it "
        f"shows: {shown}\nRewrite the prompt so that the next image comes closer to what is wanted. Answer with the "
        "prompt alone."
    )
    return [{"role": "user", "content": said}]
