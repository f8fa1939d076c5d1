"""How well a model answers the user's examples with a reducer attached, and what the reducer saves meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from foveal.cli._compress_examples import Asked, Example
from foveal.compress.report import Report as Saved
from foveal.compress.runtime import PrefillReducer
from foveal.evaluate.base import Metric, ratio, share
from foveal.evaluate.models.vision_language import Request, VisionLanguage
from foveal.evaluate.tasks.answers import is_right
from foveal.evaluate.tasks.asking import normalised, vqa_accuracy

METRICS = ("accuracy", "log-likelihood")
SHORT_WORDS = 5
"""Longer answers are hardly ever repeated word by word."""
_REPORTED = 5
"""Batches whose FLOPs are counted; which are the same for every method."""
_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Cost:
    """What a reducer left of the prefill, measured by `PrefillReducer.report`. Shares are those of the whole prompt."""

    image_tokens: float
    """That a decoder layer processes, mean over layers and prompts."""
    image_tokens_full: float
    kept: float
    flops: float
    """Decoder and ranking."""
    kv: float | None

    @classmethod
    def of(cls, saved: Sequence[tuple[int, Saved]]) -> Cost:
        """Of prefills with so many prompts each."""
        prompts = sum(n for n, _ in saved)
        tokens = sum(n * sum(one.image_tokens) / len(one.image_tokens) for n, one in saved) / prompts
        full = sum(n * one.image_tokens_full for n, one in saved) / prompts
        flops = sum(one.flops + one.flops_selection for _, one in saved) / sum(one.flops_full for _, one in saved)
        stored = sum(one.kv_bytes_full or 0 for _, one in saved)
        kv = sum(one.kv_bytes or 0 for _, one in saved) / stored if stored else None
        return cls(tokens, full, tokens / full, flops, kv)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """Asks a model about examples and scores what it says.

    "accuracy" compares short answers as VQA does; "log-likelihood" is that of the reference answer, mean over its
    tokens. The prompt is read before the answer, so that no reducer can choose tokens by the answer.

    Args:
        adapter: the model; reducers are attached to it.
        asked: where pictures come from.
        examples: all that will be asked about: they decide how long answers may be.
        metric: of `METRICS`.
        probe: those on which it is found out whether answers begin with a blank.
    """

    def __init__(
        self,
        adapter: VisionLanguage,
        asked: Asked,
        examples: Sequence[Example],
        metric: str,
        probe: Sequence[Example],
    ) -> None:
        self.adapter, self.asked, self.metric = adapter, asked, metric
        written = [answer for example in examples for answer in example.answers]
        self._longest = max([_ANSWER_TOKENS, *(1 + self._tokens(answer) for answer in written)])
        self._blank = ""
        if metric == "log-likelihood":
            self._blank = self._usual_blank(probe[: adapter.batch_size])

    def scores(
        self,
        examples: Sequence[Example],
        reducer: PrefillReducer | None = None,
        saved: list[tuple[int, Saved]] | None = None,
    ) -> list[float]:
        """One score for each example, in their order; into ``saved`` go the reports of a few prefills."""
        batches = self._batches(examples)
        every = math.ceil(len(batches) / _REPORTED)
        found: dict[int, float] = {}
        with nullcontext() if reducer is None else reducer.attached(self.adapter.model):
            for number, batch in enumerate(batches):
                found.update(zip([example.row for example in batch], self._scored(batch), strict=True))
                if reducer is not None and saved is not None and number % every == 0:
                    saved.append((len(batch), reducer.report()))
        return [found[example.row] for example in examples]

    def measured(self, examples: Sequence[Example], reducer: PrefillReducer) -> tuple[Cost, Metric]:
        """The cost, and the mean score with its interval."""
        saved: list[tuple[int, Saved]] = []
        scores = self.scores(examples, reducer, saved)
        return Cost.of(saved), self.as_metric(scores)

    def as_metric(self, scores: Sequence[float]) -> Metric:
        """Wilson's interval where every answer is right or wrong, else the bootstrap's."""
        if self.metric == "log-likelihood":
            return ratio(self.metric, scores, unit="nats a token")
        if all(score in (0, 1) for score in scores):
            return share(self.metric, [score == 1 for score in scores])
        return ratio(self.metric, scores)

    def _batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """As the adapter will have them in one pass each: equally many pictures, prompts of about one length."""
        batches: list[list[Example]] = []
        for example in sorted(examples, key=lambda one: (one.pictures, len(one.prompt), one.row)):
            last = batches[-1] if batches else []
            if not last or len(last) == self.adapter.batch_size or last[0].pictures != example.pictures:
                batches.append([])
            batches[-1].append(example)
        return batches

    def _scored(self, batch: Sequence[Example]) -> list[float]:
        if self.metric == "log-likelihood":
            return [self._likelihood(example, self._blank) for example in batch]
        requests = [Request(self.asked.pictures(example), example.prompt) for example in batch]
        said = self.adapter.answer(requests, self._longest)
        return [_agreement(text, example) for text, example in zip(said, batch, strict=True)]

    def _likelihood(self, example: Example, blank: str) -> float:
        answer = blank + example.answers[0].strip()
        pictures = self.asked.pictures(example)
        ((total, _),) = self.adapter.loglikelihood([(example.prompt, answer, pictures)])
        return total / self._tokens(answer)

    def _tokens(self, text: str) -> int:
        return len(self.adapter.tokenizer(text, add_special_tokens=False).input_ids)

    def _usual_blank(self, examples: Sequence[Example]) -> str:
        """Whether answers begin with a blank differs from template to template: the model likes one better."""
        return max("", " ", key=lambda blank: math.fsum(self._likelihood(one, blank) for one in examples))


def fitting_metric(examples: Sequence[Example]) -> str:
    """Accuracy, unless the middle one of the reference answers has more than `SHORT_WORDS` words."""
    return METRICS[typical_words(examples) > SHORT_WORDS]


def typical_words(examples: Sequence[Example]) -> float:
    """Words of the middle one of the reference answers."""
    return median(len(normalised(example.answers[0]).split()) for example in examples)


def _agreement(said: str, example: Example) -> float:
    if example.by_people:
        return vqa_accuracy(said, example.answers)
    return float(is_right(said, [normalised(answer) for answer in example.answers]))
