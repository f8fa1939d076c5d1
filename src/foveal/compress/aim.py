"""AIM: merge similar visual tokens before the decoder, then prune the rest layer by layer.

Merging, for each image by itself, in rounds until the share that is asked for is left: even tokens are sources, odd
ones destinations; the r sources that resemble some destination most become one with it.

    j*(i) = argmax_j cos(x_i, x_j)            the r largest maxima are merged
    x_j ← mean of x_j and all its sources     of this round; no bookkeeping of earlier ones

Pruning: after layer i ≥ start, of n visual tokens that entered the decoder ⌊n·(1 − (i − start + 1)·step)⌋ stay, those
of largest importance. It is a PageRank on the layer's attention, where text and image vote alike:

    M = softmax(Z / τ)                        Z: causal logits of layer i, (heads, L, L)
    d⁰ = 1/L,  dᵗ⁺¹ = (1 − δ) dᵗM + δ/L       5 times
    importance = √ mean_h d²                  of each token

Yiwu Zhong, Zhuoming Liu, Yin Li, Liwei Wang: AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning.
ICCV 2025, arXiv 2412.03248.

Departures: pruned tokens are removed (the authors' code masks them, and lets them vote on). Survivors of a merge stay
in raster order; ``order="ranked"`` gives the order of the authors' code.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.aim_rank import causal_importance
from foveal.compress.aim_rank import pagerank_importance as pagerank_importance
from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, keep_count
from foveal.compress.prefill import Keep
from foveal.compress.runtime import PrefillReducer

ORDERS = ("spatial", "ranked")


def bipartite_merge(
    x: Float[Tensor, "b n d"], r: int, metric: Float[Tensor, "b n dm"] | None = None, order: str = "spatial"
) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b n"]]:
    """Merge the r even tokens that are most like an odd one into it; m = n − min(r, n // 2) are left; r = 0 returns x.

    Likeness is the cosine of ``metric`` (None: of ``x``). Returns the merged tokens and, for every input token, the row
    that holds it. "spatial" keeps the survivors in their order; "ranked" puts the unmerged even ones first, by falling
    likeness, and the odd ones behind. Raises ValueError for r < 0, a ``metric`` of other shape and another ``order``.
    """
    _check_merge(x, order)
    if r < 0:
        raise ValueError(f"r={r}: a number of tokens to merge cannot be negative")
    metric = x if metric is None else metric
    if metric.ndim != 3 or metric.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"metric has shape {tuple(metric.shape)}; give one vector for each token of x {tuple(x.shape)}"
        )
    merged, assign, _ = _merge_once(x, min(r, x.shape[1] // 2), metric, order)
    return merged, assign


def iterative_merge(
    x: Float[Tensor, "b n d"], keep: int, order: str = "spatial"
) -> tuple[Float[Tensor, "b keep d"], Int[Tensor, "b n"]]:
    """`bipartite_merge` in as few rounds as it takes until ``keep`` tokens are left.

    Returns the merged tokens and, for every input token, the row that holds it. Raises ValueError unless 1 ≤ keep ≤ n.
    """
    _check_merge(x, order)
    merged, assign, _ = _merge_to(x, keep, order)
    return merged, assign


def retain_schedule(n_layers: int, start: int, step: float = 0.125) -> list[float]:
    """Share of the visual tokens that is left after each layer: 1 before ``start``, then ``step`` less each time.

    Raises ValueError when ``start`` is not in [0, n_layers] and for a negative ``step``.
    """
    if not 0 <= start <= n_layers:
        raise ValueError(f"start={start} must lie in [0, {n_layers}], the number of layers")
    if not step >= 0:
        raise ValueError(f"step={step}: the share pruned at each layer cannot be negative")
    return [1.0 if layer < start else max(0.0, 1.0 - (layer - start + 1) * step) for layer in range(n_layers)]


def prune_step(importance: Float[Tensor, " l"], is_image: Bool[Tensor, " l"], keep: int) -> Int[Tensor, " k"]:
    """All text tokens and the ``keep`` image tokens of largest ``importance``, ascending; of equals the first.

    Raises ValueError when ``keep`` is negative or above the number of image tokens.
    """
    images = is_image.nonzero()[:, 0]
    if not 0 <= keep <= len(images):
        raise ValueError(f"keep={keep}: there are {len(images)} image tokens to keep from")
    best = importance[images].argsort(descending=True, stable=True)[:keep]
    stays = ~is_image
    stays[images[best]] = True
    return stays.nonzero()[:, 0]


class AIM(PrefillReducer):
    """Merge the visual tokens of each image before the decoder, and prune them inside it; it trains like this too.

    Works on LLaVA, LLaVA-NeXT and LLaVA-OneVision. Line ends of the latter two are not merged, but are pruned as the
    other visual tokens. Several images of a prompt are merged one by one and pruned together.

    Args:
        merge_ratio: share of each image's tokens that merging leaves, in (0, 1]; 1 merges nothing.
        start: first 0-based layer after which tokens are pruned; none are when the model has no such layer. The paper
            takes 14 of 28 layers (Qwen2-7B), 13 of 32 (LLaVA-1.5-7B).
        step: share of the merged tokens that goes after each layer from there on.
        tau: temperature τ of the attention.
        iters: steps of the PageRank.
        damping: δ, the share of importance that is spread evenly in each step, in [0, 1].

    Raises ValueError for other values; on `attach` for models whose features do not come image by image.
    """

    looks_back = True
    reads_features = True
    merges = True
    positions = "compact_first"

    def __init__(
        self,
        merge_ratio: float = 0.25,
        start: int = 14,
        step: float = 0.125,
        tau: float = 0.1,
        iters: int = 5,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < merge_ratio <= 1:
            raise ValueError(f"merge_ratio={merge_ratio}: the share of tokens to keep must lie in (0, 1]")
        if start < 0:
            raise ValueError(f"start={start}: layers count from 0; a start beyond the last layer prunes nothing")
        if not step >= 0:
            raise ValueError(f"step={step}: the share pruned at each layer cannot be negative")
        if not tau > 0 or iters < 1 or not 0 <= damping <= 1:
            raise ValueError(f"tau={tau} must be above 0, iters={iters} at least 1, damping={damping} in [0, 1]")
        self.merge_ratio, self.start, self.step = merge_ratio, start, step
        self.tau, self.iters, self.damping = tau, iters, damping
        self._n_visual: list[int] = []
        """Visual tokens of each sample that entered the decoder, merged ones."""

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError for models whose features do not come image by image."""
        if anatomy.features != "image":
            reason = "its vision side does not tell which tokens belong to one image"
            anatomy.refuse(type(self).__name__, reason)

    def select(self, step: LayerInput) -> Keep | None:
        """Merged before the first layer, pruned before the later ones."""
        if step.layer:
            return self._prune(step)
        self._n_visual = list(step.n_image)
        return None if self.merge_ratio == 1 or not any(step.n_image) else self._merge(step)

    def _merge(self, step: LayerInput) -> Keep:
        """Each survivor's row holds the mean of its group, the other columns go."""
        hidden = step.hidden.clone()
        kept: list[list[Tensor]] = [[] for _ in step.n_image]
        for sample, places in step.images():
            x = step.hidden[sample, places.to(hidden.device)]
            line_end = self._line_ends(x).to(places.device)
            patches = places[~line_end]
            keep = max(1, keep_count(len(patches), self.merge_ratio))
            merged, _, survivors = _merge_to(x[~line_end.to(x.device)][None], keep)
            step.spend(sum(2 * ((n + 1) // 2) * (n // 2) * x.shape[-1] for n, _ in _rounds(len(patches), keep)))
            own = patches[survivors[0].to(places.device)]
            hidden[sample, own.to(hidden.device)] = merged[0]
            kept[sample] += [places[line_end], own]
        step.hidden = hidden
        self._n_visual = [sum(len(part) for part in parts) for parts in kept]
        return [torch.cat(parts) if parts else None for parts in kept]

    def _line_ends(self, x: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Which of an image's tokens are the model's one vector for the end of a row."""
        assert self.anatomy is not None
        newline = getattr(self.anatomy.base, "image_newline", None)
        if newline is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return (x == newline.to(x)).all(-1)

    @torch.no_grad()
    def _prune(self, step: LayerInput) -> Keep | None:
        assert self.anatomy is not None
        depth = len(self.anatomy.layers)
        rate = retain_schedule(depth, min(self.start, depth), self.step)[step.layer - 1]
        before = step.previous
        if rate == 1 or before is None:
            return None
        return [self._best(before, sample, keep_count(n, rate)) for sample, n in enumerate(self._n_visual)]

    def _best(self, before: LayerInput, sample: int, keep: int) -> Int[Tensor, " keep"] | None:
        """The image tokens that matter most to the layer before."""
        places, is_image = before.sample(sample)
        if int(is_image.sum()) <= keep:
            return None
        if keep == 0:
            return places[:0]
        first = int(is_image.nonzero()[0])  # votes only go back: tokens in front of the first image need no queries
        query, key = before.queries_and_keys(sample, torch.arange(first, len(places)))
        importance = causal_importance(query, key, self.tau, self.iters, self.damping, before.spend)
        places, is_image = places[first:], is_image[first:]
        kept = prune_step(importance.to(places.device), is_image, keep)
        return places[kept[is_image[kept]]]


def _check_merge(x: Tensor, order: str) -> None:
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; give (batch, tokens, width)")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be 'spatial' or 'ranked'")


def _rounds(n: int, keep: int) -> Iterator[tuple[int, int]]:
    """(tokens, how many of them to merge away) of each round on the way from n to ``keep``."""
    while n > keep:
        r = min(n // 2, n - keep)
        yield n, r
        n -= r


def _merge_to(
    x: Float[Tensor, "b n d"], keep: int, order: str = "spatial"
) -> tuple[Float[Tensor, "b keep d"], Int[Tensor, "b n"], Int[Tensor, "b keep"]]:
    """Merged tokens, the row that holds each input token, and each row's survivor among the input tokens."""
    batch, n, _ = x.shape
    if not 1 <= keep <= n:
        raise ValueError(f"keep={keep} must lie in [1, {n}], the number of tokens")
    assign = survivors = torch.arange(n, device=x.device).expand(batch, n)
    for _, r in _rounds(n, keep):
        x, rows, left = _merge_once(x, r, x, order)
        assign, survivors = rows.gather(1, assign), survivors.gather(1, left)
    return x, assign, survivors


def _merge_once(
    x: Float[Tensor, "b n d"], r: int, metric: Float[Tensor, "b n dm"], order: str
) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b n"], Int[Tensor, "b m"]]:
    """As `_merge_to`, in one round that merges r ≤ n // 2 tokens away."""
    batch, n, width = x.shape
    tokens = torch.arange(n, device=x.device).expand(batch, n)
    if r == 0:
        return x, tokens, tokens
    likeness, target = _best_destination(metric)
    ranked = likeness.argsort(dim=1, descending=True, stable=True)
    sources = 2 * ranked[:, :r]
    owner = tokens.scatter(1, sources, 2 * target.gather(1, ranked[:, :r]) + 1)
    survivors = torch.cat([2 * ranked[:, r:], tokens[:, 1::2]], 1)
    if order == "spatial":
        survivors = survivors.sort(1).values
    row = torch.empty_like(owner).scatter(1, survivors, tokens[:, : n - r])
    assign = row.gather(1, owner)
    exact = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros(batch, n - r, width, dtype=exact)
    total = total.scatter_add(1, assign[..., None].expand(-1, -1, width), x.to(exact))
    size = total.new_zeros(batch, n - r).scatter_add(1, assign, torch.ones_like(assign, dtype=exact))
    return (total / size[..., None]).to(x.dtype), assign, survivors


@torch.no_grad()
def _best_destination(metric: Float[Tensor, "b n dm"]) -> tuple[Float[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Of every even token the largest cosine with an odd one, and which of the odd ones it is."""
    unit = torch.nn.functional.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
    best = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    return best.values, best.indices
