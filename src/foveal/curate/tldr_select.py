"""Which samples stay: a few of every cluster, of these the better matching ones."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def select_every(labels: Int[Tensor, " n"], every: int) -> Int[Tensor, " m"]:
    """In every cluster the members number 0, ``every``, 2 · ``every`` … in the order of the rows; ascending indices."""
    if every < 1 or every % 1:
        raise ValueError(f"every={every}: must be a whole number, at least 1")
    order, ranks, _ = _by_cluster(labels, torch.arange(len(labels), device=labels.device))
    return order[ranks % every == 0].sort().values


def select_fraction(labels: Int[Tensor, " n"], fraction: float, generator: torch.Generator) -> Int[Tensor, " m"]:
    """In every cluster max(1, ⌊fraction · size⌋) members, drawn uniformly; ascending indices."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be in (0, 1]")
    draw = torch.randperm(len(labels), generator=generator).to(labels.device)
    order, ranks, sizes = _by_cluster(labels, draw)
    quotas = torch.tensor([max(1, math.floor(fraction * size)) for size in sizes.tolist()], dtype=torch.int64)
    return order[ranks < quotas.to(labels.device).repeat_interleave(sizes)].sort().values


def _by_cluster(
    labels: Int[Tensor, " n"], order: Int[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " c"]]:
    """Rows sorted by cluster, those of one in the given order; the number of each within its cluster; cluster sizes."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels {tuple(labels.shape)} of {labels.dtype} must be (n,) whole numbers")
    order = order[labels[order].sort(stable=True).indices]
    _, sizes = labels[order].unique_consecutive(return_counts=True)
    firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order, torch.arange(len(labels), device=labels.device) - firsts, sizes


def top_by_score(scores: Float[Tensor, " n"], fraction: float = 0.5) -> Bool[Tensor, " n"]:
    """True for the ``int(fraction · n)`` best of all; of equal scores the lower index."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be in (0, 1]")
    if scores.ndim != 1 or bool(scores.isnan().any()):
        raise ValueError(f"scores {tuple(scores.shape)} must be (n,) without NaN")
    top = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    top[scores.sort(descending=True, stable=True).indices[: int(fraction * len(scores))]] = True
    return top


def combine_selection(keep: Int[Tensor, " m"], top: Bool[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Those of the indices ``keep`` where ``top`` is True, in their order."""
    if keep.ndim != 1 or top.ndim != 1 or top.dtype != torch.bool:
        shapes = f"keep {tuple(keep.shape)} and top {tuple(top.shape)} of {top.dtype}"
        raise ValueError(f"{shapes} must be (m,) indices and (n,) booleans")
    if len(keep) and not 0 <= int(keep.min()) <= int(keep.max()) < len(top):
        raise ValueError(f"keep holds {int(keep.min())} to {int(keep.max())}: must be in [0, {len(top)})")
    return keep[top[keep]]
