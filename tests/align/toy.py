"""A language model that is small enough to look through and listens to a picture; batches of preferences for it."""

from types import SimpleNamespace

import torch
from torch import nn

VOCABULARY, WIDTH, IGNORE = 11, 8, -100


class ToyLVLM(nn.Module):
    """Logits of a causal running mean of the tokens before, shifted by the mean colour of the picture."""

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.tokens = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=rng))
        self.picture = nn.Parameter(torch.randn(3, WIDTH, generator=rng))
        self.head = nn.Parameter(torch.randn(WIDTH, VOCABULARY, generator=rng))
        self.dropout = nn.Dropout(dropout)
        self.calls = []

    def forward(self, pixel_values, input_ids, attention_mask):
        self.calls.append(SimpleNamespace(pixels=pixel_values, grad=torch.is_grad_enabled(), training=self.training))
        mask = attention_mask[..., None].float()
        running = (self.tokens[input_ids] * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
        seen = pixel_values.mean((2, 3)) @ self.picture
        return SimpleNamespace(logits=self.dropout(torch.tanh(running + seen[:, None])) @ self.head)


def batch(rows=4, seed=0):
    """Prompts of three tokens; answers of two to five tokens, padded on the right with a token that also occurs."""
    rng = torch.Generator().manual_seed(seed)
    found = {"pixel_values": torch.rand(rows, 3, 4, 4, generator=rng)}
    prompt = torch.randint(1, VOCABULARY, (rows, 3), generator=rng)
    for side, longest in (("chosen", 5), ("rejected", 4)):
        lengths = torch.randint(2, longest + 1, (rows,), generator=rng)
        answer = torch.randint(1, VOCABULARY, (rows, longest), generator=rng)
        kept = torch.arange(longest)[None] < lengths[:, None]
        ones, nothing = torch.ones(rows, 3, dtype=torch.long), torch.full((rows, 3), IGNORE)
        found[f"{side}_input_ids"] = torch.cat([prompt, torch.where(kept, answer, 0)], 1)
        found[f"{side}_attention_mask"] = torch.cat([ones, kept.long()], 1)
        found[f"{side}_labels"] = torch.cat([nothing, torch.where(kept, answer, IGNORE)], 1)
    return found


def padded(found, more=3):
    """The same batch with more padding, whose token is one that answers contain."""
    fill = {"input_ids": 5, "attention_mask": 0, "labels": IGNORE}
    longer = dict(found)
    for side in ("chosen", "rejected"):
        for part, value in fill.items():
            old = found[f"{side}_{part}"]
            longer[f"{side}_{part}"] = torch.cat([old, old.new_full((len(old), more), value)], 1)
    return longer
