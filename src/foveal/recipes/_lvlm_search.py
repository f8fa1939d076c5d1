"""Prompts prepared once, on which strategies of keeping rates are measured by the first token of the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from foveal.compress.base import LayerInput
from foveal.compress.gsearch import kendall_tau, strategy_cost
from foveal.compress.gsearch_keep import LayerwiseKeep
from foveal.compress.pyramiddrop import instruction_attention
from foveal.compress.runtime import PrefillReducer
from foveal.evaluate.base import Item, Setting
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, host
from foveal.recipes._lvlm_worlds import items_of
from foveal.zoo.nano import Nano

KINDS = ("existence", "colour", "count", "object")
Evaluate = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Prompts:
    """Model inputs in batches, and for every prompt the tokens with which a right answer may begin."""

    nano: Nano
    batches: list[Any]
    beginnings: list[list[set[int]]]

    @torch.no_grad()
    def right(self, rates: Sequence[float] | None) -> float:
        """Percentage of prompts answered rightly under keeping rates, or by the unmodified host."""
        reducer = None if rates is None else LayerwiseKeep(rates).attach(self.nano.model)
        try:
            said = [self.nano.model(**batch, logits_to_keep=1).logits[:, -1].argmax(-1) for batch in self.batches]
        finally:
            if reducer:
                reducer.detach()
        pairs = [(int(token), begin) for row, own in zip(said, self.beginnings) for token, begin in zip(row, own)]
        return 100 * sum(token in begin for token, begin in pairs) / len(pairs)


def prompts(run: Run, first_seed: int, each: int) -> Prompts:
    """``each`` held-out questions of every kind about clear scenes, for `Run.shared`."""
    nano = run.shared(host)
    setting = Setting(1 if run.smoke else each, first_seed + run.seed)
    items = [item for kind in KINDS for item in items_of(kind, setting, "clear")[: setting.n]]
    batches, beginnings = [], []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        texts = [f"USER: <image>\n{item.texts[0]} ASSISTANT:" for item in part]
        images = [item.pictures()[0] for item in part if item.pictures]
        batches.append(nano.processor(text=texts, images=images, padding=True, return_tensors="pt"))
        beginnings.append([_beginnings(nano, item) for item in part])
    return Prompts(nano, batches, beginnings)


def cost(run: Run, rates: list[float]) -> float:
    """Percentage of the FLOPs that the host spends on image tokens."""
    nano = run.shared(host)
    text, n = nano.model.config.text_config, nano.model.config.image_seq_length
    return 100 * strategy_cost(rates, n, text.hidden_size, text.intermediate_size)


def _beginnings(nano: Nano, item: Item) -> set[int]:
    answers = item.truth.get("accepted") or [item.truth["answer"]]
    ids = nano.processor.tokenizer([f" {answer}" for answer in answers], add_special_tokens=False).input_ids
    return {row[0] for row in ids}


class _Rankings(PrefillReducer):
    """Drops nothing; notes what the last token of every prompt attends to, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[list[Tensor]] = []

    def select(self, step: LayerInput) -> None:
        found = []
        for sample in range(len(step.n_image)):
            places, is_image = step.sample(sample)
            query, key = step.queries_and_keys(sample, torch.tensor([len(places) - 1]))
            found.append(instruction_attention(query, key)[is_image])
        self.scores.append(found)


@torch.no_grad()
def agreement(asked: Prompts) -> dict[str, float]:
    """Kendall's τ of the rankings of neighbouring layers: of layers 0 and 1, and mean over the later pairs."""
    with _Rankings().attached(asked.nano.model) as rankings:
        asked.nano.model(**asked.batches[0], logits_to_keep=1)
    taus = [
        sum(kendall_tau(a, b) for a, b in zip(upper, lower, strict=True)) / len(upper)
        for upper, lower in pairwise(rankings.scores)
    ]
    return {"tau of layers 0 and 1": taus[0], "tau of later layers": sum(taus[1:]) / len(taus[1:])}
