"""Muon for linear layers and convolutions, AdamW for everything else: for small models that start from nothing.

Method: Jordan et al., https://kellerjordan.github.io/posts/muon (2024). Step sizes as in Liu et al., "Muon is Scalable
for LLM Training", arXiv:2502.16982, so that learning rate and weight decay mean what they mean for AdamW. torch's own
``Muon`` works in bfloat16, which most CPUs only emulate, and has no place for the other parameters.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.train.optim import parameter_groups

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pushes all singular values towards one in five rounds."""
ROUNDS = 5
MOMENTUM = 0.95
LIKE_ADAMW = 0.2
"""Root mean square of AdamW's usual update, which the step is scaled to."""


class MuonAdamW(torch.optim.AdamW):
    """Groups with ``orthogonal=True`` take Muon's step, the others AdamW's.

    Muon: B ← 0.95 B + g; W ← (1 − lr·decay) W − 0.2 √max(rows, columns) · lr · orthogonalised(g + 0.95 B).
    A convolution's weight is a matrix with one row for each output channel.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients of the orthogonal groups are consumed."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._orthogonal_step(group)
        return super().step(closure)  # which passes over parameters without a gradient

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[(parameter.shape, parameter.dtype, parameter.device)].append(parameter)
        for parameters in alike.values():
            gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
            buffers = [
                self.state[parameter].setdefault("momentum", torch.zeros_like(parameter)) for parameter in parameters
            ]
            torch._foreach_mul_(buffers, MOMENTUM)
            torch._foreach_add_(buffers, list(gradients))
            updates = orthogonalised((gradients + MOMENTUM * torch.stack(buffers)).flatten(2))
            scale = LIKE_ADAMW * max(updates.shape[1:]) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates.reshape(gradients.shape)), alpha=-group["lr"] * scale)
            for parameter in parameters:
                parameter.grad = None


def orthogonalised(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """About U Vᵀ for each U S Vᵀ: singular values between 0.7 and 1.2 (those of nearly nothing stay smaller)."""
    a, b, c = COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def muon(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> MuonAdamW:
    """Orthogonal steps for the weights of linear layers and convolutions, embeddings of words and of patches excepted.

    Raises:
        ValueError: when the model has no trainable parameter.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {module.weight for module in model.modules() if _mixes(module)} - tables
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, weight_decay):
        for orthogonal in (True, False):
            chosen = [parameter for parameter in group["params"] if (parameter in matrices) == orthogonal]
            if chosen:
                groups.append({**group, "params": chosen, "orthogonal": orthogonal})
    return MuonAdamW(groups, lr=lr, betas=betas)


def _mixes(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Is its weight a matrix that maps features to features? That of a patch embedding maps pixels."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) or module.kernel_size != module.stride
    return isinstance(module, nn.Linear)
