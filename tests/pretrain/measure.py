"""One backward pass of an objective, as numbers: for the contract, in this process and in a pair of them."""

from torch import nn


def run(objective: nn.Module, inputs, loss=None) -> dict[str, object]:
    """Loss and gradients. ``loss`` (objective, inputs) -> scalar; default: the objective's own."""
    inputs = tuple(x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    value = objective(*inputs).loss if loss is None else loss(objective, inputs)
    value.backward()
    return {
        "loss": value.item(),
        "inputs": [x.grad.tolist() for x in inputs if x.is_floating_point()],
        "parameters": {name: p.grad.tolist() for name, p in objective.named_parameters() if p.requires_grad},
    }
