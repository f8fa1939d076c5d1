"""Prompts prepared once, on which ways of dropping tokens are measured by the first token of the answer."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from foveal.compress.gsearch import strategy_cost
from foveal.compress.gsearch_keep import LayerwiseKeep
from foveal.compress.runtime import PrefillReducer
from foveal.evaluate.base import Item, Setting
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, host
from foveal.recipes._lvlm_worlds import items_of
from foveal.zoo.nano import Nano

KINDS = ("existence", "colour", "count", "object")


@dataclass(frozen=True)
class Prompts:
    """Model inputs in batches, and for every prompt the tokens with which a right answer may begin."""

    nano: Nano
    batches: list[Any]
    beginnings: list[list[set[int]]]

    @torch.no_grad()
    def by_kind(self, how: Sequence[float] | PrefillReducer | None) -> dict[str, float]:
        """Percentage of each kind answered rightly, under keeping rates, by a reducer, or by the unmodified host."""
        reducer = how if how is None or isinstance(how, PrefillReducer) else LayerwiseKeep(how)
        with nullcontext() if reducer is None else reducer.attached(self.nano.model):
            said = [self.nano.model(**batch, logits_to_keep=1).logits[:, -1].argmax(-1) for batch in self.batches]
        pairs = [(int(token), begin) for row, own in zip(said, self.beginnings) for token, begin in zip(row, own)]
        marks = torch.tensor([token in begin for token, begin in pairs], dtype=torch.float64).view(len(KINDS), -1)
        return dict(zip(KINDS, (100 * marks.mean(1)).tolist(), strict=True))

    def right(self, how: Sequence[float] | PrefillReducer | None) -> float:
        """Mean of `by_kind`."""
        return fmean(self.by_kind(how).values())


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
