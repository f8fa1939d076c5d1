"""AdamW with decoupled weight decay for what should be decayed (Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101)."""

from typing import Any

import torch
from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = True) -> list[dict[str, Any]]:
    """Two groups for AdamW: decayed matrices, and everything that must not shrink towards zero.

    Never decayed: biases, parameters of norms, 0/1-d parameters (scales, temperatures, single tokens) and, with
    ``decay_embeddings=False``, embedding tables. Parameters with ``requires_grad=False`` are in no group, shared
    parameters are in one. Empty groups are left out.

    Raises:
        ValueError: when the model has no trainable parameter.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        exempt = isinstance(module, NORMS) or (isinstance(module, nn.Embedding) and not decay_embeddings)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            (kept if exempt or parameter.ndim < 2 or name == "bias" else decayed).append(parameter)
    if not seen:
        raise ValueError(
            f"model={type(model).__name__} has no trainable parameter: set requires_grad_(True) on what should learn"
        )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in the fused form where torch has one (on two CPU cores it halves the step)."""
    groups = parameter_groups(model, weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
