"""The words of SITTA (see `sitta`): which tokens are nearest to a mapped image, and how good a ranking of them is.

Fabian Paischer et al.: SITTA: A Semantic Image-Text Alignment for Image Captioning. 2023, arXiv 2307.05591.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def retrieve_tokens(
    z: Float[Tensor, "b dl"],
    targets: Float[Tensor, "v dl"],
    k: int,
    decode: Callable[[int], str] | None = None,
    pool: int = 50,
    allowed: Bool[Tensor, " v"] | Int[Tensor, " ids"] | Sequence[int] | None = None,
) -> Int[Tensor, "b k"]:
    """Ids of the k nearest targets by cosine, best first.

    Of equal cosines the lower id comes first.

    Args:
        decode: id -> string. Of the ``pool`` best ids only the first with each string (stripped, lower-cased) is kept.
        allowed: restricts the candidates: a mask over the vocabulary, or the ids themselves.

    Raises ValueError for dimensions that differ, k > pool, an ``allowed`` that is empty or names no target, too few
    candidates or distinct strings, a zero or non-finite row of z, a non-finite candidate.
    """
    return retrieve_from_units(z, unit_rows(targets), k, decode, pool, allowed)


def retrieve_from_units(
    z: Float[Tensor, "b dl"],
    targets: Float[Tensor, "v dl"],
    k: int,
    decode: Callable[[int], str] | None,
    pool: int,
    allowed: Bool[Tensor, " v"] | Int[Tensor, " ids"] | Sequence[int] | None,
) -> Int[Tensor, "b k"]:
    """`retrieve_tokens` for targets of length 1."""
    if z.ndim != 2 or targets.ndim != 2 or z.shape[1] != targets.shape[1]:
        raise ValueError(f"z {tuple(z.shape)} and targets {tuple(targets.shape)} must be (B, Dl) and (V, Dl)")
    if not 1 <= k <= pool:
        raise ValueError(f"k={k} must be between 1 and pool={pool}")
    if not bool((z.isfinite().all(1) & (z != 0).any(1)).all()):
        raise ValueError("z has a zero or non-finite row, which has no direction (one image standardised by itself?)")
    candidates = None if allowed is None else _allowed_ids(allowed, targets)
    pool = min(pool, len(targets) if candidates is None else len(candidates))
    if k > pool:
        raise ValueError(f"k={k} tokens asked for, but only {pool} candidates are allowed")
    cosine = unit_rows(z) @ (targets if candidates is None else targets[candidates]).mT
    if not bool(cosine.isfinite().all()):
        raise ValueError("targets has a non-finite row among the candidates: leave it out by allowed")
    places = _largest(cosine, pool)
    ranked = places if candidates is None else candidates[places]
    if decode is None:
        return ranked[:, :k]
    kept = []
    for row in ranked.tolist():
        first: dict[str, int] = {}
        for token in row:
            first.setdefault(decode(token).strip().lower(), token)
        if len(first) < k:
            raise ValueError(
                f"pool={pool} ids decode to {len(first)} distinct strings, fewer than k={k}: enlarge the pool"
            )
        kept.append(list(first.values())[:k])
    return torch.tensor(kept, dtype=torch.long, device=ranked.device).reshape(-1, k)


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows over their norm; first over their largest entry where squares would leave the range of the dtype."""
    norm, peak = x.norm(dim=-1, keepdim=True), x.abs().amax(-1, keepdim=True)
    extreme = (norm.isinf() | (norm < 1e-12)) & (peak > 0)
    return F.normalize(x / peak.where(extreme, 1), dim=-1)


def _allowed_ids(
    allowed: Bool[Tensor, " v"] | Int[Tensor, " ids"] | Sequence[int], targets: Float[Tensor, "v dl"]
) -> Int[Tensor, " ids"]:
    """The ids of a mask or a list, distinct and ascending."""
    picked = torch.as_tensor(allowed, device=targets.device)
    if picked.dtype in (torch.bool, torch.uint8):  # both are masks where torch indexes
        if picked.shape != targets.shape[:1]:
            raise ValueError(f"allowed {tuple(picked.shape)} must have one value for each of {len(targets)} targets")
        picked = picked.nonzero()[:, 0]
    if picked.ndim != 1 or picked.is_floating_point() or len(picked) == 0:
        raise ValueError(f"allowed {tuple(picked.shape)} of {picked.dtype} must be a mask or whole numbers, not empty")
    ids = picked.long().unique()
    if ids[0] < 0 or ids[-1] >= len(targets):
        raise ValueError(f"allowed holds {int(ids[0])}..{int(ids[-1])}, targets has rows 0..{len(targets) - 1}")
    return ids


def _largest(scores: Float[Tensor, "b n"], count: int) -> Int[Tensor, "b count"]:
    """Places of the largest scores of each row, of equal ones the lower first, which topk leaves open."""
    least = scores.topk(count).values[:, -1:]
    above, level = scores > least, scores == least
    taken = above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))
    places = taken.nonzero()[:, 1].reshape(len(scores), count)
    return places.gather(1, scores.gather(1, places).sort(dim=1, descending=True, stable=True).indices)


def ndcg(retrieved: Sequence | Tensor, relevant: Collection | Tensor) -> float:
    """Normalised discounted cumulative gain of a ranking with yes/no relevance, in [0, 1]; 0 if nothing is relevant.

    ``retrieved``: ids or strings, best first; repeated entries count each time. The ideal ranking holds the relevant
    entries that occur in it, not those the ranking lacks.
    """
    wanted = relevant if isinstance(relevant, Tensor | np.ndarray) else list(relevant)  # numpy takes a set for one item
    hits = np.isin(np.asarray(retrieved), np.asarray(wanted))
    discounts = 1 / np.log2(np.arange(len(hits)) + 2)
    return float(discounts[hits].sum() / discounts[: hits.sum()].sum()) if hits.any() else 0.0
