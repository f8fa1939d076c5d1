"""Closed-form linear maps between two embedding spaces: least squares, ridge and orthogonal Procrustes.

With paired rows X (n, Dv) and Y (n, Dl):

    ols                W = X⁺ Y                       minimum norm when rows are fewer than columns
    ridge              W = (XᵀX + αI)⁻¹ XᵀY
    procrustes         W = U Vᵀ,  U S Vᵀ = svd(XᵀY)   the rotation that fits best (Schönemann, Psychometrika 1966)
    robust_procrustes  procrustes again and again, rows that fit badly count less:
                       weight of a row = sqrt(w / max w),  w = 1 / (‖y − x W‖ + ε)

The robust form is that of WALIP (Dinh et al., Utilizing Language-Image Pretraining for Efficient and Robust Bilingual
Word Alignment, EMNLP Findings 2022, arXiv 2205.11616), as SITTA uses it (arXiv 2307.05591).
"""

import torch
from jaxtyping import Float
from torch import Tensor

METHODS = ("ols", "ridge", "procrustes", "robust_procrustes")


def standardize(
    x: Float[Tensor, "n d"],
    mean: Float[Tensor, " d"] | None = None,
    std: Float[Tensor, " d"] | None = None,
    eps: float = 1e-8,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Columns with mean 0 and population standard deviation 1, and the mean and std that were used.

    Given statistics replace those of ``x``, which may then have no rows; columns whose std is below ``eps`` are divided
    by ``eps``. The statistics of a column of equal numbers are exact: it becomes 0.
    """
    if x.ndim != 2 or (len(x) == 0 and (mean is None or std is None)):
        raise ValueError(f"x {tuple(x.shape)} must be (n, d), with at least one row unless mean and std are given")
    for label, given in (("mean", mean), ("std", std)):
        if given is not None and given.shape != x.shape[1:]:
            raise ValueError(f"{label} {tuple(given.shape)} must have one value per column of x, {x.shape[1]}")
    constant = (x == x[:1]).all(0)  # by rounding, the mean of such a column may be another number, and its std not 0
    mean = torch.where(constant, x[0], x.mean(0)) if mean is None else mean
    std = x.std(0, correction=0).masked_fill(constant, 0) if std is None else std
    return (x - mean) / std.clamp_min(eps), mean, std


def fit_linear_map(
    X: Float[Tensor, "n dv"],
    Y: Float[Tensor, "n dl"],
    method: str = "ols",
    alpha: float = 1.0,
    eps: float = 1e-3,
    iters: int = 5,
) -> Float[Tensor, "dv dl"]:
    """W such that X W ≈ Y, without intercept and without centring (see `standardize`).

    Args:
        method: "ols", "ridge", "procrustes" or "robust_procrustes".
        alpha: ridge penalty, > 0.
        eps, iters: smallest residual norm and number of re-weightings of "robust_procrustes".

    Raises ValueError for an unknown method, rows that do not pair up, an empty or non-finite X or Y.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or len(X) == 0:
        raise ValueError(f"X {tuple(X.shape)} and Y {tuple(Y.shape)} must be (n, Dv) and (n, Dl) with the same n > 0")
    if not (bool(X.isfinite().all()) and bool(Y.isfinite().all())):
        raise ValueError("X and Y must be finite: remove rows with NaN or infinity")
    if method == "ols":
        return torch.linalg.pinv(X) @ Y
    if method == "ridge":
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: must be positive; use method='ols' for no penalty")
        return torch.linalg.solve(X.mT @ X + alpha * torch.eye(X.shape[1], dtype=X.dtype, device=X.device), X.mT @ Y)
    W = _procrustes(X, Y)
    for _ in range(iters if method == "robust_procrustes" else 0):
        weights = 1 / ((Y - X @ W).norm(dim=1, keepdim=True) + eps)
        weights = (weights / weights.max()).sqrt()
        W = _procrustes(weights * X, weights * Y)
    return W


def _procrustes(X: Float[Tensor, "n dv"], Y: Float[Tensor, "n dl"]) -> Float[Tensor, "dv dl"]:
    U, _, Vh = torch.linalg.svd(X.mT @ Y, full_matrices=False)
    return U @ Vh
