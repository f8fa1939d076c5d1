"""Bayesian optimisation of a costly function of a few numbers, which `gsearch` uses to fit its sigmoid.

A Gaussian process with the kernel s²·exp(−½‖Δ/ℓ‖²) and noise σ² models what was seen; the next point is the one of
largest expected improvement. Inputs are scaled to the unit cube and outputs standardised, so that fixed grids of ℓ and
σ² will do. Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1; Jones et al. (1998).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_LENGTHSCALES = (0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.0)
_NOISES = (1e-4, 1e-2, 1e-1)
_SPREADS = (0.1, 0.03, 0.01)
_RANDOM, _NEAR = 1024, 128


def gp_posterior(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    xq: Float[Tensor, "m d"],
    lengthscale: float,
    signal: float = 1.0,
    noise: float = 1e-6,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Mean and standard deviation, at ``xq``, of the function behind the observations ``y`` at ``x``.

    Args:
        x, y, xq: observed points, their values, points asked for; computed in float64.
        lengthscale: ℓ, in the units of x.
        signal: s, standard deviation of the function before anything was seen; its mean is 0.
        noise: σ², variance of the observations' noise, which the returned deviation does not contain.

    Raises ValueError for shapes that do not fit, numbers out of range, and points so close together that they need
    more noise.
    """
    x, y, xq = (torch.as_tensor(part, dtype=torch.float64) for part in (x, y, xq))
    lengthscale, signal, noise = float(lengthscale), float(signal), float(noise)
    if x.ndim != 2 or y.shape != x.shape[:1] or xq.ndim != 2 or xq.shape[1] != x.shape[1] or not len(x):
        raise ValueError(f"x {(*x.shape,)}, y {(*y.shape,)} and xq {(*xq.shape,)} must be (n, d), (n,) and (m, d)")
    root = _factor(x, lengthscale, signal, noise)
    across = _kernel(x, xq, lengthscale, signal)
    mean = across.T @ torch.cholesky_solve(y[:, None], root)[:, 0]
    explained = torch.linalg.solve_triangular(root, across, upper=False).square().sum(0)
    return mean, (signal**2 - explained).clamp(min=1e-12).sqrt()


def expected_improvement(
    mean: Float[Tensor, " m"], std: Float[Tensor, " m"], best: float, xi: float = 0.01
) -> Float[Tensor, " m"]:
    """How far, on average, a normal variable exceeds ``best`` + ``xi``: (μ − best − ξ)·Φ(z) + σ·φ(z).

    z = (μ − best − ξ)/σ; larger is better. Raises ValueError when a ``std`` is not positive.
    """
    mean, std = (torch.as_tensor(part, dtype=torch.float64) for part in (mean, std))
    if mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError(f"std {(*std.shape,)} must be positive and of the shape of mean {(*mean.shape,)}")
    gain = mean - best - xi
    z = gain / std
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    return gain * torch.special.ndtr(z) + std * density


def bayes_opt(
    objective: Callable[[Float[Tensor, " d"]], float],
    bounds: Float[Tensor, "d 2"] | Sequence[Sequence[float]],
    n_init: int = 4,
    n_iter: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " d"], float, list[tuple[Tensor, float]]]:
    """Maximise ``objective`` with n_init + n_iter calls.

    Args:
        objective: takes a float64 point (d,) and returns a number.
        bounds: lowest and highest value of each coordinate.
        n_init: calls before the first model: the middle of the box, then random points.
        n_iter: calls where the model expects the largest improvement.
        generator: source of all randomness, on the CPU; None: one with seed 0.

    Returns the best point seen, its value, and every (point, value) in order.
    Raises ValueError for bad ``bounds`` or counts, and when the objective returns no finite number.
    """
    bounds = torch.as_tensor(bounds, dtype=torch.float64)
    if bounds.ndim != 2 or bounds.shape[1:] != (2,) or not len(bounds):
        raise ValueError(f"bounds {(*bounds.shape,)} must be (d, 2): lowest and highest value of each coordinate")
    low, high = bounds.T
    if not bool((bounds.isfinite().all()) & (low < high).all()):
        raise ValueError(f"bounds={bounds.tolist()}: each lowest value must lie below its highest, both finite")
    if n_init < 1 or n_iter < 0:
        raise ValueError(f"n_init={n_init}, n_iter={n_iter}: give at least 1 and 0 calls")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    unit = torch.rand(n_init, len(bounds), dtype=torch.float64, generator=generator)
    unit[0] = 0.5
    history: list[tuple[Tensor, float]] = []
    for call in range(n_init + n_iter):
        if call >= n_init:
            values = torch.tensor([value for _, value in history], dtype=torch.float64)
            unit = torch.cat([unit, _propose(unit, values, generator)[None]])
        point = low + unit[call] * (high - low)
        value = float(objective(point.clone()))
        if not abs(value) < float("inf"):
            raise ValueError(f"objective={value} at {point.tolist()}: it must return a finite number")
        history.append((point, value))
    best, value = max(history, key=lambda seen: seen[1])
    return best, value, history


def _propose(x: Float[Tensor, "n d"], y: Float[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, " d"]:
    """The point of the unit cube that promises most, among random ones and ones near the best so far."""
    spread = y.std(correction=0)
    z = (y - y.mean()) / (spread if spread > 0 else 1)
    grid = [(lengthscale, noise) for lengthscale in _LENGTHSCALES for noise in _NOISES]
    lengthscale, noise = max(grid, key=lambda choice: _log_likelihood(x, z, *choice))
    d = x.shape[1]
    steps = torch.randn(len(_SPREADS), _NEAR, d, dtype=torch.float64, generator=generator)
    near = (x[z.argmax()] + steps * torch.tensor(_SPREADS, dtype=torch.float64)[:, None, None]).clamp(0, 1)
    candidates = torch.cat([torch.rand(_RANDOM, d, dtype=torch.float64, generator=generator), near.view(-1, d)])
    mean, std = gp_posterior(x, z, candidates, lengthscale, noise=noise)
    return candidates[expected_improvement(mean, std, float(z.max())).argmax()]


def _log_likelihood(x: Float[Tensor, "n d"], y: Float[Tensor, " n"], lengthscale: float, noise: float) -> float:
    """log p(y | x), up to a constant."""
    root = _factor(x, lengthscale, 1.0, noise)
    return float(-y @ torch.cholesky_solve(y[:, None], root)[:, 0] / 2 - root.diagonal().log().sum())


def _kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], lengthscale: float, signal: float) -> Tensor:
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return signal**2 * torch.exp(-(distance / lengthscale).square() / 2)


def _factor(x: Float[Tensor, "n d"], lengthscale: float, signal: float, noise: float) -> Float[Tensor, "n n"]:
    """Cholesky factor of the observations' covariance."""
    if not (lengthscale > 0 and signal > 0 and noise >= 0):
        raise ValueError(f"lengthscale={lengthscale} and signal={signal} must be positive, noise={noise} at least 0")
    covariance = _kernel(x, x, lengthscale, signal) + noise * torch.eye(len(x), dtype=x.dtype)
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError(f"noise={noise}: some points of x lie too close together for it; take a larger one, e.g. 1e-6")
    return root
