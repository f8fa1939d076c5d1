"""From pictures to clusters: vector quantisation, codes as features, whitening and k-means.

    k(z) = argmin_k ‖z − e_k‖²,   q = e_k(z),   z_q = z + sg(q − z)
    L_vq = mean((q − sg z)²) + β · mean((sg q − z)²)                     means over all numbers

van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

KINDS = ("index", "histogram")
_CHUNK = 8192  # rows whose distances to all centroids are held at once


@dataclass(frozen=True)
class Quantized:
    """What `vector_quantize` gives: the nearest codes with straight-through gradients, their indices, and the loss."""

    z_q: Float[Tensor, "*b d"]
    indices: Int[Tensor, "*b"]
    loss: Float[Tensor, ""]


def vector_quantize(
    z: Float[Tensor, "*b d"], codebook: Float[Tensor, "k d"], beta: float = 0.25, legacy: bool = False
) -> Quantized:
    """The nearest entry of ``codebook`` for each vector; ties go to the lowest index.

    ``z_q`` passes its gradient on to ``z`` unchanged and gives none to the codebook, which learns from the loss.

    Args:
        beta: weight of the commitment term, which pulls ``z`` to its code.
        legacy: the released code's weights: 1 on commitment, β on the codebook; the same value, other gradients.

    Raises ValueError for widths that differ, nothing to quantise, a negative β and values that are not finite.
    """
    if codebook.ndim != 2 or z.ndim < 1 or z.shape[-1] != codebook.shape[1] or 0 in (*z.shape, *codebook.shape):
        shapes = f"z {tuple(z.shape)} and codebook {tuple(codebook.shape)}"
        raise ValueError(f"{shapes} must be (..., D) and (K, D) of one width D, not empty")
    if not beta >= 0:
        raise ValueError(f"beta={beta}: must be 0 or more")
    exact = torch.promote_types(z.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        indices = _nearest(z.reshape(-1, z.shape[-1]), codebook).reshape(z.shape[:-1])
    z_exact, q = z.to(exact), codebook[indices].to(exact)
    codebook_term, commitment = F.mse_loss(q, z_exact.detach()), F.mse_loss(z_exact, q.detach())
    loss = beta * codebook_term + commitment if legacy else codebook_term + beta * commitment
    if not bool(loss.isfinite() & codebook.isfinite().all()):
        raise ValueError(f"z or codebook holds NaN or infinity: the loss is {loss.item()}")
    return Quantized(z + (q - z_exact).detach().to(z.dtype), indices, loss)


def code_features(indices: Int[Tensor, "n t"], num_codes: int, kind: str = "index") -> Float[Tensor, "n f"]:
    """The T codes of each picture as one vector.

    "index": the indices themselves as numbers, the released way, although ids have no order. "histogram": how often
    each of the codes occurs, summing to 1, whatever the places and the numbering.

    Raises ValueError for another kind and codes outside [0, num_codes).
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if indices.ndim != 2 or 0 in indices.shape or indices.is_floating_point():
        raise ValueError(f"indices {tuple(indices.shape)} of {indices.dtype} must be (n, T) whole numbers, not empty")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= num_codes:
        raise ValueError(f"indices hold {low if low < 0 else high}: must be in [0, {num_codes})")
    if kind == "index":
        return indices.float()
    counts = torch.zeros(len(indices), num_codes, device=indices.device)
    return counts.scatter_add_(1, indices.long(), torch.ones_like(indices, dtype=counts.dtype)) / indices.shape[1]


def code_perplexity(indices: Int[Tensor, "*n"], num_codes: int) -> float:
    """exp(entropy) of how often the codes are used: from 1, a collapsed codebook, to ``num_codes``, all alike."""
    shares = torch.bincount(indices.flatten(), minlength=num_codes).double() / indices.numel()
    return float(torch.special.entr(shares).sum().exp())


def pca_whiten(x: Float[Tensor, "n d"], dim: int) -> Float[Tensor, "n dim"]:
    """Centred, turned to the ``dim`` main axes, each divided by its deviation, rows of length 1; computed in float64.

    The signs of the axes are arbitrary. An axis along which nothing varies is zero, not noise blown up; a row that
    lies in the middle of all stays zero.

    Raises ValueError unless 1 ≤ dim ≤ min(n − 1, d), or when x is not finite or all rows are equal.
    """
    if x.ndim != 2:
        raise ValueError(f"x {tuple(x.shape)} must be (n, d)")
    most = min(len(x) - 1, x.shape[1])
    if not 1 <= dim <= most:
        raise ValueError(f"dim={dim}: must be in [1, {most}], for {len(x)} rows of {x.shape[1]} numbers")
    centred = x.double() - x.double().mean(0)
    if not bool(centred.isfinite().all()):
        raise ValueError("x holds NaN or infinity")
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    variances, axes = variances[-dim:].flip(0), axes[:, -dim:].flip(1)
    smallest = variances[0] * x.shape[1] * torch.finfo(torch.float64).eps
    if not bool(variances[0] > 0):
        raise ValueError("x has only equal rows, nothing tells them apart: has the codebook collapsed?")
    scales = torch.where(variances > smallest, variances.clamp(min=0).rsqrt(), 0)
    return F.normalize(centred @ (axes * scales), dim=1, eps=1e-12)


@dataclass(frozen=True)
class KMeansResult:
    """Cluster of each row, the centroids, and the sum of squared distances of the rows to theirs."""

    labels: Int[Tensor, " n"]
    centroids: Float[Tensor, "k d"]
    inertia: Float[Tensor, ""]


def kmeans(
    x: Float[Tensor, "n d"],
    k: int,
    init: Float[Tensor, "k d"] | None = None,
    num_iter: int = 20,
    generator: torch.Generator | None = None,
) -> KMeansResult:
    """``num_iter`` rounds of Lloyd (assign, update), then a last assignment. An empty cluster keeps its centroid.

    Memory grows with n + k, not with n · k.

    Args:
        init: centroids to start from, which are left as they are; None draws k different rows with ``generator``.

    Raises ValueError unless 1 ≤ k ≤ n, when x is not finite, and when there is neither ``init`` nor ``generator``.
    """
    if x.ndim != 2 or not bool(x.isfinite().all()):
        raise ValueError(f"x {tuple(x.shape)} must be (n, d) and finite")
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k}: must be in [1, {len(x)}], the number of rows")
    if num_iter < 0:
        raise ValueError(f"num_iter={num_iter}: must not be negative")
    if init is None:
        if generator is None:
            raise ValueError("generator=None: give one, or init, to start from")
        init = x[torch.randperm(len(x), generator=generator)[:k].to(x.device)]
    elif init.shape != (k, x.shape[1]):
        raise ValueError(f"init {tuple(init.shape)} must be ({k}, {x.shape[1]})")
    exact = torch.promote_types(x.dtype, torch.float32)
    x, centroids = x.to(exact), init.to(exact).clone()
    for _ in range(num_iter):
        labels = _nearest(x, centroids)
        sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
        for rows, chosen in zip(x.split(_CHUNK), labels.split(_CHUNK), strict=True):
            sums.index_add_(0, chosen, rows.double())
        sizes = torch.bincount(labels, minlength=k)
        filled = sizes > 0
        centroids[filled] = (sums[filled] / sizes[filled, None]).to(exact)
    labels = _nearest(x, centroids)
    parts = zip(x.split(_CHUNK), labels.split(_CHUNK), strict=True)
    inertia = torch.stack([(rows - centroids[chosen]).double().square().sum() for rows, chosen in parts]).sum()
    return KMeansResult(labels, centroids, inertia)


def _nearest(x: Float[Tensor, "n d"], entries: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The nearest entry of each row, the first of those that are equally near.

    From ‖e‖² − 2 x·e about the entries' mean, as digits get lost far off zero, and in float64 where there is such.
    """
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    entries = entries.to(dtype)
    middle = entries.mean(0)
    entries = entries - middle
    offsets = entries.square().sum(1)
    radius = offsets.max().sqrt()
    places = []
    for rows in x.split(_CHUNK):
        rows = rows.to(dtype) - middle
        distances = offsets - 2 * rows @ entries.T
        # the same distance differs by rounding between two columns of a matrix product
        rounding = torch.finfo(dtype).eps * x.shape[1] ** 0.5 * radius * (radius + 2 * rows.norm(dim=1, keepdim=True))
        places.append((distances <= distances.amin(1, keepdim=True) + rounding).byte().argmax(1))
    return torch.cat(places)
