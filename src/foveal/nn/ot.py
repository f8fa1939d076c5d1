"""Optimal transport between two small sets, batched and masked: the inexact proximal point method (IPOT).

Each of M things carries the mass 1/M, each of N places receives 1/N. The plan T says what goes where at the least
cost Σ C∘T. Each round solves an entropic problem whose prior is the plan of the round before, so that, unlike
Sinkhorn's, the plan tends to the exact optimum at any β:

    Q = exp(−C/β) ∘ T                                 T = 1 and σ = 1/M before the first round
    δ_n = 1 / (N Σ_m Q_mn σ_m)        σ_m = 1 / (M Σ_n Q_mn δ_n)        ``inner`` times
    T_mn = σ_m Q_mn δ_n

Everything is kept as logarithms: with a small β the factors leave the range of float32 long before the plan does.

Yujia Xie, Xiangfeng Wang, Ruijia Wang, Hongyuan Zha: A Fast Proximal Point Method for Computing Exact Wasserstein
Distance. UAI 2019, arXiv 1802.04307.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveal.nn.cosine import unit_rows


def cosine_cost(x: Float[Tensor, "b m d"], y: Float[Tensor, "b n d"]) -> Float[Tensor, "b m n"]:
    """1 − cosine of every x with every y, in [0, 2] and float32 or better, with gradient. A zero vector costs 1."""
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or x.shape[2] != y.shape[2]:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (B, M, D) and (B, N, D)")
    with torch.autocast(x.device.type, enabled=False):  # in half precision neighbouring cosines coincide
        return 1 - unit_rows(x) @ unit_rows(y).mT


@torch.no_grad()
def ipot(
    cost: Float[Tensor, "b m n"],
    x_mask: Bool[Tensor, "b m"],
    y_mask: Bool[Tensor, "b n"],
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Float[Tensor, "b m n"]:
    """The transport plan: non-negative, mass 1, no mass on padding, no gradient; float32 or better.

    Sums over n are 1/M after every round, whatever the number of rounds, to 1e-6 at any β; sums over m tend to 1/N. M
    and N count the valid places of each sample (masks: True = valid). The cost of a padded pair may be anything.

    Args:
        beta: strength of the pull towards the last plan; smaller is faster and less smooth.
        iterations: rounds.
        inner: sweeps within a round.

    Raises ValueError for shapes that do not fit, samples without a valid place on one side, non-finite costs, beta not
    positive, and fewer than one round or sweep.
    """
    _check(cost, x_mask, y_mask)
    if not 0 < beta < math.inf:
        raise ValueError(f"beta={beta}: must be positive and finite")
    if iterations < 1 or inner < 1:
        raise ValueError(f"iterations={iterations}, inner={inner}: both must be at least 1")
    rows, columns = x_mask.bool()[:, :, None], y_mask.bool()[:, None, :]
    dtype = torch.promote_types(cost.dtype, torch.float32)
    kernel = cost.to(dtype).masked_fill(~(rows & columns), 0) / -beta
    if not bool(kernel.isfinite().all()):
        raise ValueError("cost holds NaN or infinity: check the features that it was computed from")
    kernel = kernel.masked_fill(~(rows & columns), -math.inf)
    log_m, log_n = rows.sum(1, keepdim=True).to(dtype).log(), columns.sum(2, keepdim=True).to(dtype).log()
    log_sigma, log_plan = -log_m, torch.zeros_like(kernel)
    for _ in range(iterations):
        log_q = kernel + log_plan
        for _ in range(inner):  # sums over padding alone are 0, their logarithm −∞: such factors multiply nothing
            log_delta = (-log_n - (log_q + log_sigma).logsumexp(1, keepdim=True)).masked_fill(~columns, 0)
            log_sigma = (-log_m - (log_q + log_delta).logsumexp(2, keepdim=True)).masked_fill(~rows, 0)
        log_plan = log_q + log_sigma + log_delta
    plan, share = log_plan.exp(), rows.to(dtype) / rows.sum(1, keepdim=True)
    # With a small β the logarithms are so large that their rounding shows in the sums: such samples are scaled to 1/M.
    drifted = (plan.sum(2, keepdim=True) - share).abs().sum(1, keepdim=True) > 1e-6
    return torch.where(drifted & rows, log_plan.softmax(2) * share, plan)


def _check(cost: Tensor, x_mask: Tensor, y_mask: Tensor) -> None:
    if cost.ndim != 3 or x_mask.shape != cost.shape[:2] or y_mask.shape != (cost.shape[0], cost.shape[2]):
        shapes = f"cost {tuple(cost.shape)}, x_mask {tuple(x_mask.shape)}, y_mask {tuple(y_mask.shape)}"
        raise ValueError(f"{shapes}: must be (B, M, N), (B, M) and (B, N)")
    for name, mask in (("x_mask", x_mask), ("y_mask", y_mask)):
        if not bool(mask.bool().any(1).all()):
            raise ValueError(f"{name} has a row without a valid place: leave such samples out")
