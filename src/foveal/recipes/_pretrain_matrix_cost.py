"""What a training step holds in memory, counted and not sampled: the same on every machine."""

from typing import Any

import torch
from torch import Tensor

from foveal.recipes._clip_learners import Batch, Learner


def step_bytes(learner: Learner, batch: Batch) -> int:
    """Weights, their gradients, AdamW's two averages, and whatever the forward pass keeps for the backward pass."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is given away twice
        return tensor

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            learner.loss(batch)
    weights = {p.data_ptr(): 4 * p.nbytes if p.requires_grad else p.nbytes for p in learner.parameters()}
    activations = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    return sum(weights.values()) + activations
