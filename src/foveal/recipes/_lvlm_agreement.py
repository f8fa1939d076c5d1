"""How alike the layers of a language model rank the image tokens."""

from itertools import pairwise

import torch
from torch import Tensor

from foveal.compress.base import LayerInput
from foveal.compress.gsearch import kendall_tau
from foveal.compress.pyramiddrop import instruction_attention
from foveal.compress.runtime import PrefillReducer
from foveal.recipes._lvlm_search import Prompts


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
