import pytest
import torch
from torch import nn

from foveal.train.optim import adamw, parameter_groups


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((2, 2))
        self.scale = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.words.weight  # tied
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def names(model, group):
    return {name for name, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_decay_groups():
    model = Parts()
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert names(model, decayed) == {"words.weight", "hidden.weight"}
    assert names(model, kept) == {"hidden.bias", "norm.weight", "norm.bias", "scale"}
    assert len(decayed["params"]) + len(kept["params"]) == 6  # the tied matrix once, frozen ones never

    decayed, kept = parameter_groups(model, 0.1, decay_embeddings=False)
    assert "words.weight" in names(model, kept)
    assert "words.weight" not in names(model, decayed)


def test_decay_is_decoupled():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = adamw(model, lr=0.1, betas=(0.9, 0.98), weight_decay=0.5)
    model.weight.grad, model.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before[1])


def test_nothing_to_train():
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
