"""Features of all processes of a distributed run, with gradient; without one, everything here does nothing."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def gather_features(x: Float[Tensor, "b *d"], group: Any = None) -> Float[Tensor, "wb *d"]:
    """``x`` of all W processes of ``group``, one below the other in the order of their ranks, with gradient.

    Backward sums over the processes what each wants from these rows; with losses that are means over their own B rows,
    the *mean* of parameter gradients that DDP takes is then the gradient of the loss on the whole batch.
    Returns ``x`` itself where torch.distributed is not initialised.

    Raises ValueError, on every process alike, when they hold different numbers of rows.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    rows = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, rows, group=group)
    if len(set(map(int, counts))) > 1:  # else the collective below would hang or return rubbish
        raise ValueError(f"x has {', '.join(str(int(n)) for n in counts)} rows on the processes: drop the last batch")
    return _Gather.apply(x, group)


def mean_over_processes(x: Float[Tensor, "*d"], group: Any = None) -> Float[Tensor, "*d"]:
    """Mean of ``x`` over the processes of ``group``, without gradient; ``x`` itself where there is one.

    A sum over this process divided by such a mean of counts is what DDP's mean turns into the mean over all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


class _Gather(torch.autograd.Function):
    """All-gather whose backward is the matching sum; torch.distributed.nn's version is deprecated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.rows = group, len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        first_order_only("gather_features")
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)  # on every backend, unlike reduce-scatter
        return total[dist.get_rank(ctx.group) * ctx.rows :][: ctx.rows], None


def first_order_only(what: str) -> None:
    """For hand-written backward passes: torch's ``once_differentiable`` would drop second-order terms in silence."""
    if torch.is_grad_enabled():  # inside a backward pass that means create_graph=True
        plain = "or, for CLIP, use clip_loss on one device"
        raise RuntimeError(f"{what} cannot be differentiated twice: drop create_graph=True, {plain}")
