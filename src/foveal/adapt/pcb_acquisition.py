"""Which pictures to label next: entropy, coreset and BADGE, for any classifier that gives probabilities and features.

    entropy    − Σ_c p_c log(p_c + ε)                                    the largest first
    coreset    the picture farthest from its nearest labelled one        (Sener and Savarese, arXiv 1708.00489)
    BADGE      e = (1[c = argmax p] − p_c) f for all c, k-means++ on e   (Ash et al., arXiv 1906.03671)

Nothing here compares the pool with itself all at once: memory grows with the pool and not with its square.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.nn.cosine import unit_rows

Method = Literal["random", "entropy", "coreset", "badge"]
METHODS: tuple[Method, ...] = get_args(Method)
NEEDS = {"entropy": "probs", "coreset": "features and labeled_features", "badge": "probs and features"}
ROWS_AT_ONCE = 1024  # between them and one point all distances are computed in float64


def entropy_scores(probs: Float[Tensor, "n k"], *, eps: float = 1e-6) -> Float[Tensor, " n"]:
    """Entropy of each row in nats (float64): the higher, the less certain. ValueError: ``probs`` is not 2-D."""
    _check_rows("probs", probs)
    probs = probs.double()
    return -(probs * (probs + eps).log()).sum(1)


def kcenter_greedy(labeled: Float[Tensor, "m d"], unlabeled: Float[Tensor, "n d"], n: int) -> Int[Tensor, " n_chosen"]:
    """Points that cover the pool: again and again the one with the largest Euclidean distance to its nearest centre.

    The labelled points are centres from the start. Rows are taken as they are (the paper: unit rows); of equal
    distances the lowest index counts.

    Returns:
        ``n`` different positions in ``unlabeled``, in the order of choice.

    Raises:
        ValueError: no labelled point, or ``n`` more than there are.
    """
    _check_rows("labeled", labeled)
    _check_rows("unlabeled", unlabeled)
    if len(labeled) == 0 or labeled.shape[1] != unlabeled.shape[1]:
        raise ValueError(
            f"labeled {tuple(labeled.shape)} needs at least one row, as wide as unlabeled {tuple(unlabeled.shape)}"
        )
    _check_number(n, len(unlabeled))
    nearest = torch.full((len(unlabeled),), torch.inf, dtype=torch.float64)
    for centre in labeled:
        nearest = torch.minimum(nearest, _squared_distances(unlabeled, centre))
    chosen = []
    for _ in range(n):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, _squared_distances(unlabeled, unlabeled[chosen[-1]]))
        nearest[chosen] = -1.0  # a duplicate of a centre has distance 0 and can still be taken, once
    return torch.tensor(chosen, dtype=torch.int64)


def badge_embeddings(probs: Float[Tensor, "n k"], features: Float[Tensor, "n d"]) -> Float[Tensor, "n k*d"]:
    """How the last layer would move if the likeliest class were true: block c is (1[c = argmax p] − p_c) · feature.

    In float64. A large pool does not need them: `candidate_pool` computes the same choice from the two factors.
    """
    return (_residual(probs)[:, :, None] * _matching(probs, features)[:, None, :]).flatten(1)


def kmeanspp_select(
    embeddings: Float[Tensor, "n e"],
    n: int,
    *,
    uniforms: Float[Tensor, " n_draws"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " n_chosen"]:
    """The seeding of k-means++: first the longest row, then rows with probability ∝ distance² to the nearest chosen.

    Args:
        embeddings: compared in float64.
        n: how many different rows.
        uniforms: the n − 1 draws in [0, 1); row i is taken when i is the first whose cumulative share exceeds the draw.
        generator: draws them when ``uniforms`` is None.

    Returns:
        Positions in the order of choice. When all that are left are duplicates of chosen rows: the lowest position.

    Raises:
        ValueError: ``n`` is more than there are rows, or ``uniforms`` has another length or leaves [0, 1).
    """
    _check_rows("embeddings", embeddings)
    lengths = torch.cat([part.double().square().sum(1) for part in embeddings.split(ROWS_AT_ONCE)])
    return _seeds(lengths, lambda i: _squared_distances(embeddings, embeddings[i]), n, uniforms, generator)


def candidate_pool(
    method: str,
    n_cand: int,
    *,
    probs: Float[Tensor, "n k"] | None = None,
    features: Float[Tensor, "n d"] | None = None,
    labeled_features: Float[Tensor, "m d"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " n_chosen"]:
    """Positions in the pool that a base method would like to have labelled, the most wanted first.

    Args:
        method: "random" gives all positions in their order; "entropy" needs ``probs``, "badge" also ``features``,
            "coreset" ``features`` and ``labeled_features``, whose rows it normalises.
        n_cand: how many; "random" ignores it, the others give the whole pool when it is smaller.

    Raises:
        ValueError: unknown method, something that it needs is missing, or ``n_cand`` below 1.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    if n_cand < 1:
        raise ValueError(f"n_cand={n_cand}: must be at least 1")
    pool = probs if probs is not None else features
    if pool is None:
        raise ValueError(f"method={method!r} needs probs or features, to know how large the pool is")
    n_cand = min(n_cand, len(pool))
    if method == "random":
        return torch.arange(len(pool))
    if method == "entropy" and probs is not None:
        return entropy_scores(probs).argsort(descending=True, stable=True)[:n_cand]
    if method == "coreset" and features is not None and labeled_features is not None:
        return kcenter_greedy(unit_rows(labeled_features), unit_rows(features), n_cand)
    if method == "badge" and probs is not None and features is not None:
        return _badge_seeds(probs, features, n_cand, generator)
    raise ValueError(f"method={method!r} needs {NEEDS[method]}")


def _badge_seeds(
    probs: Float[Tensor, "n k"], features: Float[Tensor, "n d"], n: int, generator: torch.Generator | None
) -> Int[Tensor, " n_chosen"]:
    """k-means++ on `badge_embeddings`, of which none is made: ⟨r ⊗ f, r' ⊗ f'⟩ = ⟨r, r'⟩ ⟨f, f'⟩."""
    residual, features = _residual(probs), _matching(probs, features)
    lengths = residual.square().sum(1) * features.square().sum(1)

    def distances(i: int) -> Float[Tensor, " n"]:
        squared = lengths + lengths[i] - 2 * (residual @ residual[i]) * (features @ features[i])
        # what rounding leaves between equal rows must not be taken for a distance
        return squared.where(squared > 1e-12 * (lengths + lengths[i]), 0.0)

    return _seeds(lengths, distances, n, None, generator)


def _seeds(
    lengths: Float[Tensor, " n"],
    distances: Callable[[int], Float[Tensor, " n"]],
    n: int,
    uniforms: Float[Tensor, " n_draws"] | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " n_chosen"]:
    """k-means++ for whatever can tell squared lengths and squared distances to row i."""
    _check_number(n, len(lengths))
    if uniforms is None:
        uniforms = torch.rand(max(n - 1, 0), generator=generator, dtype=torch.float64)
    elif uniforms.shape != (max(n - 1, 0),) or not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError(f"uniforms {tuple(uniforms.shape)} must be n - 1 = {n - 1} numbers in [0, 1)")
    if n == 0:
        return torch.empty(0, dtype=torch.int64)
    chosen = [int(lengths.argmax())]
    nearest = torch.full_like(lengths, torch.inf)
    free = torch.ones(len(lengths), dtype=torch.bool)
    for draw in uniforms.double():
        nearest = torch.minimum(nearest, distances(chosen[-1]))
        free[chosen[-1]] = False
        nearest[~free] = 0.0
        chosen.append(_drawn(nearest, free, draw))
    return torch.tensor(chosen, dtype=torch.int64)


def _drawn(nearest: Float[Tensor, " n"], free: Tensor, draw: Tensor) -> int:
    total = nearest.cumsum(0)
    if total[-1] == 0:
        return int(free.int().argmax())
    index = int(torch.searchsorted(total / total[-1], draw, right=True))
    if index == len(nearest) or nearest[index] == 0:  # rounding at the upper end
        index = int(nearest.nonzero()[-1])
    return index


def _squared_distances(rows: Float[Tensor, "n d"], point: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    """By differences, not by products: duplicates have distance 0 exactly."""
    return torch.cat([(part.double() - point.double()).square().sum(1) for part in rows.split(ROWS_AT_ONCE)])


def _residual(probs: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    _check_rows("probs", probs)
    residual = -probs.double()
    residual[torch.arange(len(probs)), probs.argmax(1)] += 1
    return residual


def _matching(probs: Tensor, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    _check_rows("features", features)
    if len(features) != len(probs):
        raise ValueError(f"features has {len(features)} rows, probs {len(probs)}: give one for each")
    return features.double()


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2:
        raise ValueError(f"{name} {tuple(rows.shape)} must have two axes, one row for each picture")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: check the model")


def _check_number(n: int, available: int) -> None:
    if not 0 <= n <= available:
        raise ValueError(f"n={n}: must be within 0 and the {available} that there are")
