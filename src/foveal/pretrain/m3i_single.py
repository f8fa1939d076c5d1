"""One of M3I's special cases alone, on the parts of an `M3IObjective`: the baselines that it unites.

    input     a view, or half of its patches
    target    category, text, the other view (as a vector), pixels, codes of patches, or features of the view
    and the family and device against collapse of `SPECIAL_CASES`

Other views as in SimCLR, MoCo, BYOL and SimSiam (arXiv 2002.05709, 2104.02057, 2006.07733, 2011.10566), pixels as in
MAE (2111.06377), features as in data2vec (2202.03555). The codes of "beit" are those of a random fixed codebook
(BEST-RQ, arXiv 2202.01855) in the place of BEiT's learned one (2106.08254). The bank of "moco" is the batch, as in
its third version. Hidden patches are zeros in the input, not left out. The momentum side of two views has its own
encoder; both sides share the pooling.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import gather_features
from foveal.pretrain.m3i_decoders import Grid, cell_size, from_patches, patch_tokens, places, to_patches
from foveal.pretrain.m3i_targets import M3IOutput, Valid, check_views, rank_rows, summed
from foveal.pretrain.m3i_terms import (
    SPECIAL_CASES,
    gaussian_log_likelihood,
    layer_normed,
    mix_tokens,
    random_mix_mask,
    unchecked_boltzmann,
    unmix_tokens,
)

if TYPE_CHECKING:
    from foveal.pretrain.m3i import M3IObjective

CODES, CODE_WIDTH = 256, 16


class M3ISingle(nn.Module):
    """Called as its objective is; ``parts.after_step`` moves the target encoder here too."""

    def __init__(self, parts: "M3IObjective", case: str) -> None:
        super().__init__()
        if case not in SPECIAL_CASES:
            raise ValueError(f"case={case!r} is unknown: choose one of {', '.join(SPECIAL_CASES)}")
        needed = {"clip": parts.semantic.text_encoder, "supervised": parts.semantic.classes}
        if needed.get(case, case) is None:
            missing = "text_encoder" if case == "clip" else "num_classes"
            raise ValueError(f"case={case!r} needs {missing}, which the objective has not")
        self.parts, self.case, self.choice = parts, case, SPECIAL_CASES[case]
        dim, width = len(parts.mask_token), parts.pool.proj.out_features
        if case in ("byol", "simsiam"):  # without a predictor on one side alone the views would collapse
            self.predictor = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        if case in ("mae", "beit"):
            side = cell_size(parts.target_encoder)
            if side is None:
                raise ValueError(f"case={case!r} needs the size of a patch: give the encoder an integer patch_size")
            pixels = 3 * side * side
            if case == "mae":
                self.to_pixels = nn.Linear(dim, pixels)
            else:
                self.codes = nn.Embedding(CODES, dim)
                rng = torch.Generator().manual_seed(0)  # the codebook is the same for everybody
                self.register_buffer("projection", torch.randn(pixels, CODE_WIDTH, generator=rng))
                self.register_buffer("codebook", torch.randn(CODES, CODE_WIDTH, generator=rng))

    projection: Tensor
    codebook: Tensor

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
        """See `M3IObjective.forward`; ``generator`` is for masked views alone."""
        check_views(view1, view2, relative)
        self.parts.semantic.check(text, labels)
        valid: Valid = {}
        if self.choice.inputs == "masked view":
            value = self._masked(view1, generator)
        elif self.choice.target == "other view":
            value = self._other_view(view1, view2)
        else:
            pred, own = self._vector(self.parts.encoder, view1), torch.arange(len(view1), device=view1.device)
            given, having = (text, has_text) if self.case == "clip" else (labels, has_label)
            if given is None:
                raise ValueError(f"case={self.case!r} needs {'text' if self.case == 'clip' else 'labels'}")
            of = self.parts.semantic.of_texts if self.case == "clip" else self.parts.semantic.of_labels
            value, valid[self.case] = of(pred, own, len(view1), given, having)
        return summed({self.case: value}, valid, {self.case: 1.0}, view1=view1, view2=view2)

    def _vector(self, encoder: nn.Module, view: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.parts.pool(self.parts.norm(patch_tokens(encoder, view)[0]))

    def _other_view(self, view1: Tensor, view2: Tensor) -> Float[Tensor, " b"]:
        """The vector of view 2 from view 1, and the other way round."""
        momentum = "momentum" in self.choice.anti_collapse
        vectors = [self._vector(self.parts.encoder, view) for view in (view1, view2)]
        if self.case == "simclr":
            targets = vectors
        elif momentum:
            with torch.no_grad():
                targets = [self._vector(self.parts.target_encoder, view) for view in (view1, view2)]
        else:
            targets = [vector.detach() for vector in vectors]
        values = []
        for vector, target in zip(vectors, reversed(targets), strict=True):
            if self.choice.family == "boltzmann":
                index = rank_rows(len(vector), vector.device)
                scale = self.parts.semantic.logit_scale()
                values.append(unchecked_boltzmann(vector, gather_features(target), 1 / scale, index))
            else:
                values.append(gaussian_log_likelihood(unit_rows(self.predictor(vector)), unit_rows(target)))
        return (values[0] + values[1]) / 2

    def _masked(self, view: Tensor, generator: torch.Generator | None) -> Float[Tensor, " b"]:
        """Pixels, codes or features of the hidden half of the patches."""
        with torch.no_grad():
            features, grid = patch_tokens(self.parts.target_encoder, view)
        visible = random_mix_mask(len(view), features.shape[1], 0.5, generator).to(view.device)
        patches = to_patches(view, grid)
        hidden = self._decode(view, patches, visible, grid)
        if self.case == "data2vec":
            pred, target = self.parts.dense.intra(hidden), layer_normed(features)
            return gaussian_log_likelihood(pred, target, self.parts.sigma, ~visible)
        if self.case == "mae":
            pixels = layer_normed(patches)
            return gaussian_log_likelihood(self.to_pixels(hidden), pixels, self.parts.sigma, ~visible)
        codes = (unit_rows(patches.float() @ self.projection) @ unit_rows(self.codebook).mT).argmax(-1)
        scale, rows = self.parts.semantic.logit_scale(), hidden.flatten(0, 1)
        value = unchecked_boltzmann(rows, self.codes.weight, 1 / scale, codes.flatten()).view_as(visible)
        return (value * ~visible).sum(1) / (~visible).sum(1).clamp_min(1)

    def _decode(self, view: Tensor, patches: Tensor, visible: Tensor, grid: Grid) -> Float[Tensor, "b n d"]:
        shown = mix_tokens(patches, torch.zeros_like(patches), visible)
        masked = from_patches(shown, grid, (view.shape[2], view.shape[3]))
        tokens = self.parts.norm(patch_tokens(self.parts.encoder, masked)[0])
        apart, _ = unmix_tokens(tokens, visible, self.parts.mask_token)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=view.device)
        return self.parts.dense.hidden(apart, places(grid, whole).expand(len(view), -1, -1))
