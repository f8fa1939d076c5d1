"""DreamLIP: several sentences of a long description are all positives of their image, and each finds its own patches.

An image is worth about ten sentences. At every step K of them (`sample_subcaptions`) meet the global image embedding in
a contrastive loss with several positives, and each groups the patches it talks about, whose sum it must recognise among
the groups of the other sentences. No boxes or masks are needed.

    v, t, p                     image (B, D), texts (B, K, D), patches (B, N, D), all of length 1
    text_to_image = −mean_ik log softmax_n(s · v_n · t_ik) at n = i
    image_to_text = −mean_ik log softmax_n(s · v_i · t_nk) at n = i          against the k-th texts of the others only

    S_kn = t_k · p_n,   Ŝ = (S − min_n S) / (max_n S − min_n S),   W = Ŝ[Ŝ ≥ σ] / Σ_n,   g_k = normalised Σ_n W_kn p_n
    grouping: each text picks its own group among the groups of its image, and each group its text; scale s_l
    loss = λ_M · (text_to_image + image_to_text) / 2 + λ_S · grouping

Kecheng Zheng, Yifei Zhang, Wei Wu, et al.: DreamLIP: Language-Image Pre-training with Long Captions. ECCV 2024,
arXiv 2403.17007.

Departures: means over images and texts where the paper writes sums. The released code groups within the whole batch
(``negatives="batch"`` here), but pairs texts with the patches of other images, as it lays them out slot by slot and
reads them image by image; here each text meets its own image. It also cuts patches of one width into rows of another
where a projection belongs.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import (
    LogitScale,
    finite_loss,
    finite_on_all,
    full_precision,
    gather_features,
    pair_scores,
    positive_scale,
)
from foveal.pretrain.dreamlip_captions import Captions as Captions
from foveal.pretrain.dreamlip_captions import recaption as recaption
from foveal.pretrain.dreamlip_captions import sample_subcaptions as sample_subcaptions
from foveal.pretrain.dreamlip_captions import share_repeated as share_repeated
from foveal.pretrain.dreamlip_captions import split_caption as split_caption

Norm = Literal["minmax", "softmax"]
Negatives = Literal["image", "batch"]


@dataclass
class MultiPositiveOutput:
    """The loss and its two directions."""

    loss: Float[Tensor, ""]
    image_to_text: Float[Tensor, ""]
    text_to_image: Float[Tensor, ""]


@dataclass
class GroupingOutput:
    """The loss, its two directions, the group of every text (length 1) and the share that each patch has in it."""

    loss: Float[Tensor, ""]
    text_to_patch: Float[Tensor, ""]
    patch_to_text: Float[Tensor, ""]
    grouped: Float[Tensor, "b k d"]
    weights: Float[Tensor, "b k n"]


@dataclass
class DreamLIPOutput:
    """The weighted sum, its two parts before weighting, and the share of each patch in the group of each text."""

    loss: Float[Tensor, ""]
    multi_positive: Float[Tensor, ""]
    grouping: Float[Tensor, ""]
    weights: Float[Tensor, "b k n"]


# Several positives ----------------------------------------------------------------------------------------------------


def multi_positive_loss(
    image_features: Float[Tensor, "b d"], text_features: Float[Tensor, "b k d"], scale: float | Tensor
) -> MultiPositiveOutput:
    """CLIP's loss of the images with the k-th texts, averaged over k. Features are normalised here.

    Args:
        scale: positive multiplier of the cosines, a float or a 0-d tensor (which gets a gradient).

    Raises ValueError for shapes that do not fit, a scale that is not positive, and non-finite features.
    """
    _check_texts(image_features, text_features, "image_features", 2)
    image, text = unit_rows(image_features), unit_rows(text_features)
    out = _multi_positive(image, text, image, text, scale, 0)
    finite_loss(out.loss, image_features=image, text_features=text)
    return out


def _multi_positive(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b k d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g k d"],
    scale: float | Tensor,
    rank: int,
) -> MultiPositiveOutput:
    """Of unit features; rows of this process against those of all."""
    scale = positive_scale(scale, like=image)
    own = rank * len(image) + torch.arange(len(image), device=image.device)
    with full_precision(image):
        per_image = scale * torch.einsum("bd,gkd->bgk", image, all_text)
        per_text = scale * torch.einsum("bkd,gd->bgk", text, all_image)
        own = own[:, None].expand(-1, text.shape[1])
        image_to_text, text_to_image = F.cross_entropy(per_image, own), F.cross_entropy(per_text, own)
    return MultiPositiveOutput((image_to_text + text_to_image) / 2, image_to_text, text_to_image)


# Grouping -------------------------------------------------------------------------------------------------------------


def group_patches(
    text_features: Float[Tensor, "b k d"],
    patch_features: Float[Tensor, "b n d"],
    *,
    threshold: float | None = 0.1,
    norm: Norm = "minmax",
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k n"]]:
    """For every text the patches of its image that it talks about, added up: (groups of length 1, weights).

    Args:
        threshold: σ, in [0, 1): patches whose normalised similarity is smaller get no weight; None is 1/N.
        norm: "minmax" stretches the similarities of one text from 0 to 1, "softmax" makes their exponentials sum to 1.

    Weights sum to 1 over the patches. They are 1/N each where all fall below the threshold, as they do when all patches
    are alike to the last digits. The gradient flows through the weights.

    Raises ValueError for shapes that do not fit, an unknown norm, a threshold outside [0, 1), and non-finite features.
    """
    _check_texts(patch_features, text_features, "patch_features", 3)
    _check_choices(threshold, norm)
    grouped, weights = _group(unit_rows(text_features), unit_rows(patch_features), threshold, norm)
    finite_loss(weights.detach().sum(), text_features=text_features, patch_features=patch_features)
    return grouped, weights


def _group(
    text: Float[Tensor, "b k d"], patch: Float[Tensor, "b n d"], threshold: float | None, norm: str
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k n"]]:
    """Of unit features."""
    patches = patch.shape[1]
    with full_precision(text):
        similarity = text @ patch.mT
        likeness = similarity.softmax(-1) if norm == "softmax" else _stretched(similarity)
        kept = likeness.masked_fill(likeness < (1 / patches if threshold is None else threshold), 0)
        total = kept.sum(-1, keepdim=True)
        nothing = total == 0
        weights = torch.where(nothing, 1 / patches, kept / total.masked_fill(nothing, 1))
        return unit_rows(weights @ patch), weights


def _stretched(similarity: Float[Tensor, "b k n"]) -> Float[Tensor, "b k n"]:
    """From 0 to 1 over the patches. Differences that are mere rounding of cosines become 0, not the whole range."""
    low = similarity.amin(-1, keepdim=True)
    spread = similarity.amax(-1, keepdim=True) - low
    alike = spread <= 4 * torch.finfo(similarity.dtype).eps
    return ((similarity - low) / (spread.masked_fill(alike, 1) + 1e-10)).masked_fill(alike, 0)


def grouping_loss(
    text_features: Float[Tensor, "b k d"],
    patch_features: Float[Tensor, "b n d"],
    scale: float | Tensor,
    *,
    threshold: float | None = 0.1,
    norm: Norm = "minmax",
    negatives: Negatives = "image",
) -> GroupingOutput:
    """Each text finds its own group of patches, each group its text; see `group_patches`.

    Args:
        scale: positive multiplier of the cosines, a float or a 0-d tensor (which gets a gradient).
        negatives: what they are told apart from: the other texts of the same "image", or of the whole "batch".

    Raises ValueError also for unknown negatives and a scale that is not positive.
    """
    _check_texts(patch_features, text_features, "patch_features", 3)
    _check_choices(threshold, norm, negatives)
    text, patch = unit_rows(text_features), unit_rows(patch_features)
    out = _grouping(text, patch, scale, threshold, norm, negatives)
    finite_loss(out.loss, text_features=text, patch_features=patch)
    return out


def _grouping(
    text: Float[Tensor, "b k d"],
    patch: Float[Tensor, "b n d"],
    scale: float | Tensor,
    threshold: float | None,
    norm: str,
    negatives: str,
    gather: Any = None,
) -> GroupingOutput:
    """Of unit features. ``gather``: rows of this process -> rows of all, and the place of this one's among them."""
    scale = positive_scale(scale, like=text)
    grouped, weights = _group(text, patch, threshold, norm)
    with full_precision(text):
        if negatives == "image":
            per_text = (scale * text @ grouped.mT).flatten(0, 1)
            per_group = (scale * grouped @ text.mT).flatten(0, 1)
            own = torch.arange(text.shape[1], device=text.device).repeat(len(text))
        else:
            groups, texts = grouped.flatten(0, 1), text.flatten(0, 1)
            (all_groups, all_texts), rank = ((groups, texts), 0) if gather is None else gather(groups, texts)
            per_group, per_text, own = pair_scores(groups, texts, all_groups, all_texts, scale, rank)
        directions = F.cross_entropy(per_text, own), F.cross_entropy(per_group, own)
    return GroupingOutput((directions[0] + directions[1]) / 2, *directions, grouped, weights)


def _check_texts(features: Tensor, text_features: Tensor, name: str, rank: int) -> None:
    """ValueError unless texts are (B, K, D) and ``features`` have ``rank`` axes, the same B and D, none of them 0."""
    found, texts = tuple(features.shape), tuple(text_features.shape)
    alike = len(found) == rank and len(texts) == 3 and (found[0], found[-1]) == (texts[0], texts[-1])
    if not alike or 0 in found + texts:
        wanted = "(B, D)" if rank == 2 else "(B, N, D)"
        raise ValueError(f"{name} {found} must be {wanted} for text_features {texts}, which must be (B, K, D)")


def _check_choices(threshold: float | None, norm: str, negatives: str = "image") -> None:
    if threshold is not None and not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}: must be in [0, 1), or None for 1/N")
    if norm not in ("minmax", "softmax"):
        raise ValueError(f"norm={norm!r} is unknown: choose minmax or softmax")
    if negatives not in ("image", "batch"):
        raise ValueError(f"negatives={negatives!r} is unknown: choose image or batch")


# Objective ------------------------------------------------------------------------------------------------------------


class DreamLIPObjective(nn.Module):
    """Both losses with their learned scales, on the features of any two towers.

    In a distributed run it gathers images and texts of all processes of ``group``. After every optimiser step call
    ``objective.clamp_()``.

    Args:
        patch_dim: width of the patch features where it differs from that of the joint space, ``embed_dim``; they are
            then projected. None: they are as wide as the texts.
        mpcl_weight, grouping_weight: λ_M and λ_S.
        threshold, norm, negatives: see `grouping_loss`.
    """

    def __init__(
        self,
        *,
        patch_dim: int | None = None,
        embed_dim: int | None = None,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        mpcl_weight: float = 1.0,
        grouping_weight: float = 1.0,
        threshold: float | None = 0.1,
        norm: Norm = "minmax",
        negatives: Negatives = "image",
        group: Any = None,
    ) -> None:
        super().__init__()
        if patch_dim is not None and embed_dim is None:
            raise ValueError(f"patch_dim={patch_dim} needs embed_dim, the width to project patches to")
        _check_choices(threshold, norm, negatives)
        self.logit_scale, self.local_logit_scale = LogitScale(init_scale, max_scale), LogitScale(init_scale, max_scale)
        self.patch_projection: nn.Module = nn.Identity()
        if patch_dim is not None and embed_dim is not None:
            self.patch_projection = nn.Linear(patch_dim, embed_dim, bias=False)
        self.mpcl_weight, self.grouping_weight = mpcl_weight, grouping_weight
        self.threshold, self.norm, self.negatives, self.group = threshold, norm, negatives, group

    def forward(
        self,
        image_features: Float[Tensor, "b d"],
        patch_features: Float[Tensor, "b n p"],
        text_features: Float[Tensor, "b k d"],
    ) -> DreamLIPOutput:
        """The class token is no patch: leave it out. Every process must call this with the same B and K."""
        _check_texts(image_features, text_features, "image_features", 2)
        patch_features = self._projected(patch_features)
        _check_texts(patch_features, text_features, "patch_features", 3)
        image, patch, text = unit_rows(image_features), unit_rows(patch_features), unit_rows(text_features)
        (all_image, all_text), rank = self._gather(image, text)
        several = _multi_positive(image, text, all_image, all_text, self.logit_scale(), rank)
        options = self.threshold, self.norm, self.negatives
        grouping = _grouping(text, patch, self.local_logit_scale(), *options, self._gather)
        loss = self.mpcl_weight * several.loss + self.grouping_weight * grouping.loss
        inputs = {"image_features": image, "patch_features": patch, "text_features": text}
        finite_on_all(loss, self.group, **inputs)
        return DreamLIPOutput(loss, several.loss, grouping.loss, grouping.weights)

    def _projected(self, patches: Tensor) -> Tensor:
        projection = self.patch_projection
        if not isinstance(projection, nn.Linear):
            return patches
        if patches.ndim != 3 or patches.shape[2] != projection.in_features:
            wanted = f"(B, N, patch_dim={projection.in_features})"
            raise ValueError(f"patch_features {tuple(patches.shape)} must be {wanted}")
        with full_precision(patches):
            return projection(patches.to(projection.weight.dtype))

    def _gather(self, *features: Tensor) -> tuple[list[Tensor], int]:
        """The rows of all processes, and the place of this one."""
        if not (dist.is_available() and dist.is_initialized()):
            return list(features), 0
        return [gather_features(rows, self.group) for rows in features], dist.get_rank(self.group)

    def clamp_(self) -> None:
        """Bring both scales back into their bounds, in place."""
        self.logit_scale.clamp_()
        self.local_logit_scale.clamp_()
