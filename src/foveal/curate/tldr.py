"""TL;DR: an image–text set at a quarter of its size, by clusters of codes, matching scores and appended captions.

    1. A captioner reads pictures through a codebook (`CodebookCaptioner`): a picture is the row of its T codes.
    2. k-means on these rows, whitened if wanted; of every cluster each N-th member, or a share at random; of these,
       those in the better half of the *whole* set by image–text matching.
    3. The caption of what is left becomes "original; generated": names and rare facts stay, and something true of the
       picture is added.

`reduce_dataset` does this with codes, scores and captions that are there already, `foveal curate tldr` with shards.

Alex Jinpeng Wang, Kevin Qinghong Lin, David Junhao Zhang, et al.: Too Large; Data Reduction for Vision-Language
Pre-Training. ICCV 2023, arXiv 2305.20087.

Departures: the codebook's loss has the weights of its paper (the released code swaps them: ``legacy``); codes may be
counted (``kind="histogram"``), since their numbers have no order; whitening and its width are a choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.curate.tldr_captioner import CaptionerOutput as CaptionerOutput
from foveal.curate.tldr_captioner import CodebookCaptioner as CodebookCaptioner
from foveal.curate.tldr_captioner import caption_ids as caption_ids
from foveal.curate.tldr_captioner import load_captioner as load_captioner
from foveal.curate.tldr_captioner import save_captioner as save_captioner
from foveal.curate.tldr_codes import KMeansResult as KMeansResult
from foveal.curate.tldr_codes import Quantized as Quantized
from foveal.curate.tldr_codes import code_features, code_perplexity, kmeans, pca_whiten
from foveal.curate.tldr_codes import vector_quantize as vector_quantize
from foveal.curate.tldr_select import combine_selection, select_every, select_fraction, top_by_score

KEPT, REDUNDANT, MISMATCHED = "kept", "redundant in its cluster", "caption matches badly"


@dataclass(frozen=True)
class Reduction:
    """What is left of n samples.

    Attributes:
        keep: their indices, ascending.
        captions: their captions, with what was generated appended.
        labels: cluster of each of the n samples.
        report: counts and shares, JSON-able.
    """

    keep: Int[Tensor, " m"]
    captions: list[str]
    labels: Int[Tensor, " n"]
    report: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """How `choose` reduces; the fields are those of `reduce_dataset`.

    Raises ValueError unless exactly one of ``every`` and ``fraction`` is given.
    """

    num_clusters: int
    every: int | None = None
    fraction: float | None = None
    itm_fraction: float = 0.5
    kind: str = "index"
    whiten_dim: int | None = None

    def __post_init__(self) -> None:
        if (self.every is None) == (self.fraction is None):
            raise ValueError(f"every={self.every} and fraction={self.fraction}: give exactly one of them")


@dataclass(frozen=True)
class Chosen:
    """``keep`` of the n samples; ``labels``: cluster of each; ``reasons``: why each was kept or not."""

    keep: Int[Tensor, " m"]
    labels: Int[Tensor, " n"]
    reasons: list[str]
    report: dict[str, Any]


def choose(
    indices: Int[Tensor, "n t"],
    itm_scores: Float[Tensor, " n"],
    choice: Choice,
    generator: torch.Generator,
    num_codes: int | None = None,
) -> Chosen:
    """Which samples stay: some of every cluster of codes, of these the well matching ones.

    ``num_codes`` is the size of the codebook; None takes the largest code there is.
    """
    if itm_scores.shape != indices.shape[:1]:
        shapes = f"itm_scores {tuple(itm_scores.shape)} and indices {tuple(indices.shape)}"
        raise ValueError(f"{shapes} must be (n,) and (n, T)")
    if not 1 <= choice.num_clusters <= len(indices):
        raise ValueError(f"num_clusters={choice.num_clusters}: must be in [1, {len(indices)}], the number of samples")
    size = int(indices.max()) + 1 if num_codes is None else num_codes
    features = code_features(indices, size, choice.kind)
    if choice.whiten_dim is not None:
        features = pca_whiten(features, choice.whiten_dim).float()
    clusters = kmeans(features, choice.num_clusters, generator=generator)
    if choice.every is not None:
        spread = select_every(clusters.labels, choice.every)
    else:
        spread = select_fraction(clusters.labels, cast(float, choice.fraction), generator)
    top = top_by_score(itm_scores, choice.itm_fraction)
    keep = combine_selection(spread, top)
    reasons = [REDUNDANT] * len(indices)
    for i in spread.tolist():
        reasons[i] = KEPT if top[i] else MISMATCHED
    sizes = torch.bincount(clusters.labels, minlength=choice.num_clusters)
    report = {
        "samples": len(indices),
        "kept": len(keep),
        "reasons": {reason: reasons.count(reason) for reason in (KEPT, REDUNDANT, MISMATCHED)},
        "clusters": {"filled": int((sizes > 0).sum()), "of": choice.num_clusters, "largest": int(sizes.max())},
        "codes": {
            "used": len(indices.unique()),
            "of": size,
            "perplexity": code_perplexity(indices, size),
        },
        "itm": {
            "lowest of the better part": float(itm_scores[top].min()) if bool(top.any()) else None,
            "mean": float(itm_scores.double().mean()),
            "mean of the kept": float(itm_scores[keep].double().mean()) if len(keep) else None,
        },
    }
    return Chosen(keep, clusters.labels, reasons, report)


def refine_caption(original: str, generated: str, sep: str = "; ") -> str:
    """ "original; generated", both stripped; an empty side is left out, and the separator with it."""
    return sep.join(side for side in (original.strip(), generated.strip()) if side)


def reduce_dataset(
    indices: Int[Tensor, "n t"],
    itm_scores: Float[Tensor, " n"],
    captions: Sequence[str],
    generated: Sequence[str] | Callable[[Int[Tensor, " m"]], Sequence[str]],
    num_clusters: int,
    every: int | None = None,
    fraction: float | None = None,
    itm_fraction: float = 0.5,
    kind: str = "index",
    whiten_dim: int | None = None,
    generator: torch.Generator | None = None,
) -> Reduction:
    """The reduced set of n samples.

    Args:
        indices: T codes of each picture.
        itm_scores: how well caption and picture match, higher is better.
        captions: the original ones.
        generated: one for each of the n samples, or a function that is given the kept indices and writes theirs only.
        num_clusters: of k-means.
        every, fraction: exactly one of them, see `select_every` and `select_fraction`.
        itm_fraction: the part of the whole set that matches well enough.
        kind: what the clusters see, see `code_features`.
        whiten_dim: axes that are left by `pca_whiten`; None takes the features as they are.
        generator: of the first centroids, and of what ``fraction`` draws.

    Raises ValueError for lengths that differ, and as the functions of the steps do.
    """
    if generator is None:
        raise ValueError("generator=None: give a torch.Generator, which decides where k-means starts")
    for name, texts in (("captions", captions), ("generated", generated)):
        if not callable(texts) and len(texts) != len(indices):
            raise ValueError(f"{name} has {len(texts)} entries for {len(indices)} rows of indices: give one for each")
    choice = Choice(num_clusters, every, fraction, itm_fraction, kind, whiten_dim)
    chosen = choose(indices, itm_scores, choice, generator)
    rows = chosen.keep.tolist()
    added = [generated[i] for i in rows] if not callable(generated) else list(generated(chosen.keep))
    if len(added) != len(rows):
        raise ValueError(f"generated wrote {len(added)} captions for {len(rows)} samples: it must write one for each")
    refined = [refine_caption(captions[i], text) for i, text in zip(rows, added, strict=True)]
    return Reduction(chosen.keep, refined, chosen.labels, chosen.report)
