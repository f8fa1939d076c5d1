"""NEVLP's objective for the contract: image features stand for images, and every call draws the same negatives."""

import torch
from torch import nn

from foveal.pretrain.nevlp import ConceptQFormer, NevlpObjective


def bridge() -> ConceptQFormer:
    """Random weights, larger than at the start of a training, so that inputs matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = ConceptQFormer(16, 2, 2, 3, 6, 20, embed_dim=8, max_positions=12, dropout=0.0)
        for parameter in tiny.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.3)
    for name, parameter in tiny.named_parameters():
        parameter.requires_grad_(not name.endswith("key.bias"))  # softmax does not see it: its gradient is rounding
    return tiny


class Objective(NevlpObjective):
    def __init__(self):
        super().__init__(nn.Identity(), bridge())

    def forward(self, features, noise_prob, ids, mask, concept_ids, concept_mask):
        generator = torch.Generator().manual_seed(0)
        return super().forward(features, ids, mask, concept_ids, concept_mask, noise_prob, generator)


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    features, noise = torch.randn(batch, 4, 6, generator=rng), torch.rand(batch, generator=rng)
    ids, concepts = torch.randint(2, 20, (batch, 6), generator=rng), torch.randint(2, 20, (batch, 3), generator=rng)
    ids[:, 0] = 1
    concept_mask = torch.ones(batch, 3, dtype=torch.bool)
    concept_mask[::2, 2] = False
    mask = torch.arange(6).expand(batch, 6) < 5 - (torch.arange(batch) % 3 == 0).long()[:, None]
    return features, noise, ids, mask, concepts, concept_mask


def hide(given):
    """Other words in the padding."""
    features, noise, ids, mask, concepts, concept_mask = given
    other, names = torch.where(mask, ids, 7), torch.where(concept_mask, concepts, 9)
    return features, noise, other, mask, names, concept_mask


def _changed(place, change):
    given = list(inputs(3, 0))
    given[place] = change(given[place])
    return tuple(given)


BAD = (
    lambda: _changed(0, lambda features: features[..., :5]),
    lambda: _changed(0, lambda features: features[:2]),
    lambda: _changed(1, lambda noise: noise + 1),
    lambda: _changed(1, lambda noise: noise[:2]),
    lambda: _changed(2, lambda ids: ids[:, :4]),
    lambda: _changed(3, torch.zeros_like),
    lambda: _changed(3, lambda mask: torch.arange(6).expand(3, 6) < 1),
    lambda: _changed(5, lambda mask: mask[:, :2]),
)
