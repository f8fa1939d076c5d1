"""M3I: supervised, image–text and self-supervised pre-training as one bound on mutual information, in one stage.

Known methods (`SPECIAL_CASES`) choose an input, a target, a likelihood and what keeps targets from collapsing. Here one
input serves many targets. With A an image of the batch, B another one, and m a mask of half of the patches:

    x = patches of A where m, of B elsewhere            encoded once
    A' = outputs where m, a learned [MASK] elsewhere    decoded; B' conversely
    L = −Σ_k λ_k E[log P_k]                             over A and B
        intra    momentum encoder's features (LayerNorm-ed) of the same view, at places not visible     Gaussian
        inter    of the other view, whose relative position the decoder gets                            Gaussian
        text     vector of the text, among those of the batch                                           Boltzmann
        label    embedding of the category, among all                                                   Boltzmann

Weijie Su, Xizhou Zhu, Chenxin Tao, Lewei Lu, Bin Li, Gao Huang, Yu Qiao, Xiaogang Wang, Jie Zhou, Jifeng Dai: Towards
All-in-one Pre-training via Maximizing Multi-modal Mutual Information. CVPR 2023, arXiv 2211.09807. No code is public.

Departures: mixing, decoders and λ = 1 are our reading, the bound, the families and the special cases are the paper's.
Patches are mixed as pixels: for a ViT that is the same as mixing its patch tokens, and any encoder can do it.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.pretrain.m3i_decoders import (
    DenseDecoder,
    Grid,
    PoolDecoder,
    from_patches,
    patch_tokens,
    places,
    to_patches,
    visible_at,
)
from foveal.pretrain.m3i_single import M3ISingle
from foveal.pretrain.m3i_targets import M3IOutput as M3IOutput
from foveal.pretrain.m3i_targets import SemanticTargets, Terms, Valid, check_views, summed
from foveal.pretrain.m3i_terms import SPECIAL_CASES as SPECIAL_CASES
from foveal.pretrain.m3i_terms import SpecialCase as SpecialCase
from foveal.pretrain.m3i_terms import boltzmann_log_likelihood as boltzmann_log_likelihood
from foveal.pretrain.m3i_terms import ema_update as ema_update
from foveal.pretrain.m3i_terms import gaussian_entropy as gaussian_entropy
from foveal.pretrain.m3i_terms import gaussian_log_likelihood as gaussian_log_likelihood
from foveal.pretrain.m3i_terms import joint_objective as joint_objective
from foveal.pretrain.m3i_terms import layer_normed
from foveal.pretrain.m3i_terms import mix_tokens as mix_tokens
from foveal.pretrain.m3i_terms import mutual_information as mutual_information
from foveal.pretrain.m3i_terms import random_mix_mask as random_mix_mask
from foveal.pretrain.m3i_terms import unmix_tokens as unmix_tokens


class M3IObjective(nn.Module):
    """One stage for all kinds of samples; only ``encoder`` is kept afterwards.

    Args:
        encoder: images -> patch tokens of width ``dim``; see `patch_tokens` for what may serve.
        text_encoder: texts -> vectors of width ``embed_dim``: `CLIPTextModelWithProjection`, `CLIPTextModel` (its
            ``pooler_output``), or a module that returns them. None: no texts.
        num_classes: categories of labelled samples; None: no labels.
        weights: λ of "intra", "inter", "text", "label"; what is left out is not computed. Default: 1 for all there are.
        momentum: of the target encoder at the start, see `after_step`.
        decoder_layers: depth of the dense decoder.
        sigma: of the Gaussians.

    Raises ValueError for weights of what the objective has not, or that are negative or not finite, and for a momentum
    outside [0, 1].

    Call `after_step` after every optimiser step. In a distributed run texts are contrasted with those of all
    processes, and means are over all samples; images are mixed with others of the same process.
    """

    def __init__(
        self,
        encoder: nn.Module,
        text_encoder: nn.Module | None,
        dim: int,
        embed_dim: int,
        num_classes: int | None = None,
        weights: Mapping[str, float] | None = None,
        momentum: float = 0.995,
        *,
        decoder_layers: int = 2,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        possible = ["intra", "inter"] + ["text"] * (text_encoder is not None) + ["label"] * (num_classes is not None)
        weights = dict.fromkeys(possible, 1.0) if weights is None else dict(weights)
        if not weights or not weights.keys() <= set(possible):
            raise ValueError(f"weights has {sorted(weights)}: must have some of {', '.join(possible)}")
        if not all(0 <= weight < math.inf for weight in weights.values()):
            raise ValueError(f"weights={weights}: must be finite numbers of at least 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be in [0, 1]")
        heads = next(n for n in range(max(dim // 64, 1), 0, -1) if dim % n == 0)  # some 64 wide, as in ViTs
        self.encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.norm = nn.LayerNorm(dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.dense = DenseDecoder(dim, decoder_layers, heads)
        self.pool = PoolDecoder(dim, embed_dim, heads)
        self.semantic = SemanticTargets(text_encoder, embed_dim, num_classes)
        self.weights, self.momentum, self.sigma = weights, momentum, sigma

    def train(self, mode: bool = True) -> "M3IObjective":
        """As for every module, except that the target encoder stays in eval mode."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def after_step(self, progress: float) -> None:
        """Move the target encoder towards the encoder, and keep the temperature in its bounds.

        ``progress`` = step / steps of the training, in [0, 1]: the momentum rises from its start to 1 along half a
        cosine.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress}: must be in [0, 1], step / steps")
        ema_update(self.target_encoder, self.encoder, self.momentum_at(progress))
        self.semantic.logit_scale.clamp_()

    def momentum_at(self, progress: float) -> float:
        """The momentum of the target encoder at that part of the training."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    def single(self, case: str) -> M3ISingle:
        """The same parts trained by one of `SPECIAL_CASES` alone, for baselines. ValueError for an unknown case."""
        return M3ISingle(self, case)

    def forward(
        self,
        view1: Float[Tensor, "b 3 h w"],
        view2: Float[Tensor, "b 3 h w"],
        text: Any = None,
        labels: Int[Tensor, " b"] | None = None,
        has_text: Bool[Tensor, " b"] | None = None,
        has_label: Bool[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
        relative: Float[Tensor, "b 4"] | None = None,
    ) -> M3IOutput:
        """The loss of a batch of two augmentations of each image.

        Args:
            text: input of the text encoder, a tensor or a dict of keyword arguments, B rows.
            labels: category of each sample.
            has_text, has_label: False: the row's text or label means nothing. Default: all have it if it is given.
            generator: draws who is mixed with whom, and the patches; without one torch's own does, as for dropout.
            relative: where view 2 lies in units of view 1 (x1, y1, x2, y2; x1 > x2: mirrored). Default: same crop.

        Raises ValueError for shapes that do not fit, texts or labels that the objective was not built for or that are
        not one for each image, labels outside the classes, and non-finite pixels. A batch of one is mixed with itself.
        """
        box = check_views(view1, view2, relative)
        self.semantic.check(text, labels)
        with torch.no_grad():
            features, grid = patch_tokens(self.target_encoder, view1)
            other = patch_tokens(self.target_encoder, view2)[0] if "inter" in self.weights else None
        partner, mask = (x.to(view1.device) for x in self.draw(len(view1), grid[0] * grid[1], generator))
        sources = torch.cat([torch.arange(len(view1), device=view1.device), partner])
        visible = torch.cat([mask, ~mask])
        tokens = torch.cat(self.encode_mixture(view1, partner, mask, grid))
        terms, valid = self._dense(tokens, visible, box[sources], grid, features[sources], other, sources)
        pred = self.pool(tokens, visible) if {"text", "label"} & self.weights.keys() else None
        for name, target, having in (("text", text, has_text), ("label", labels, has_label)):
            if name in self.weights and pred is not None:
                terms[name], valid[name] = self._semantic(name, pred, sources, target, having)
        return summed(terms, valid, self.weights, view1=view1, view2=view2)

    def draw(
        self, batch: int, patches: int, generator: torch.Generator | None
    ) -> tuple[Int[Tensor, " b"], Bool[Tensor, "b n"]]:
        """Another image of the batch for each, every image once; and the half of the patches that is its own."""
        order = torch.randperm(batch, generator=generator, device=None if generator is None else generator.device)
        partner = torch.empty_like(order).scatter_(0, order, order.roll(1))
        return partner, random_mix_mask(batch, patches, 0.5, generator)

    def encode_mixture(
        self, view: Float[Tensor, "b 3 h w"], partner: Int[Tensor, " b"], mask: Bool[Tensor, "b n"], grid: Grid
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """One pass of the encoder over the mixtures -> tokens of the images and of their partners, [MASK] elsewhere."""
        patches = to_patches(view, grid)
        mixed = from_patches(mix_tokens(patches, patches[partner], mask), grid, (view.shape[2], view.shape[3]))
        return unmix_tokens(self.norm(patch_tokens(self.encoder, mixed)[0]), mask, self.mask_token)

    def _dense(
        self,
        tokens: Float[Tensor, "n p d"],
        visible: Bool[Tensor, "n p"],
        box: Float[Tensor, "n 4"],
        grid: Grid,
        features: Float[Tensor, "n p d"],
        other: Float[Tensor, "b p d"] | None,
        sources: Int[Tensor, " n"],
    ) -> tuple[Terms, Valid]:
        """Features of the momentum encoder at the places that are not visible, in the same view and in the other.

        Where all of the other view is visible there is nothing to predict: the sample does not count.
        """
        if not {"intra", "inter"} & self.weights.keys():
            return {}, {}
        here = places(grid, torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=tokens.device)).expand(len(tokens), -1, -1)
        there = None if other is None else places(grid, box)
        intra, inter = self.dense(tokens, here, there)
        terms: Terms = {}
        valid: Valid = {}
        if "intra" in self.weights:
            terms["intra"] = gaussian_log_likelihood(intra, layer_normed(features), self.sigma, ~visible)
        if other is not None and there is not None and inter is not None:
            hidden = ~visible_at(there, visible, grid)
            terms["inter"] = gaussian_log_likelihood(inter, layer_normed(other)[sources], self.sigma, hidden)
            valid["inter"] = hidden.any(1)
        return terms, valid

    def _semantic(
        self, name: str, pred: Tensor, sources: Tensor, target: Any, having: Tensor | None
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        if target is None:  # no sample of this batch has one
            return 0 * pred.sum(1), torch.zeros(len(pred), dtype=torch.bool, device=pred.device)
        of = self.semantic.of_texts if name == "text" else self.semantic.of_labels
        return of(pred, sources, len(pred) // 2, target, having)
