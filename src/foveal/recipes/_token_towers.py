"""Towers whose tokens are compared one by one, or as their mean, and where in the picture they find words."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.lab import Run, figures
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain import filip
from foveal.recipes import _listed as data


class TokenTowers(nn.Module):
    """Two towers with FILIP's projections; ``pooled``: what is compared are the means of the projected tokens."""

    def __init__(self, pooled: bool, keep_ratio: float | None) -> None:
        super().__init__()
        self.pooled = pooled
        self.image = VisionTransformer(data.SIZE, data.PATCH, 96, 3, 4)
        self.text = TextTransformer(data.LENGTH, len(data.WORDS), 96, 2, 4)
        self.objective = filip.FILIPObjective(96, 96, 64, keep_ratio=keep_ratio)

    def forward(self, pixels: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
        if not self.pooled:
            return self.objective(self.image.tokens(pixels)[:, 1:], self.text.tokens(ids), ids > 0).loss
        sides = self.scored(self.patches(pixels)), self.scored(*self.words(ids))
        return filip.filip_loss(*sides, self.objective.logit_scale()).loss

    def patches(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        return self.objective.image_projection(self.image.tokens(pixels)[:, 1:])

    def words(self, ids: Int[Tensor, "b l"]) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        return self.objective.text_projection(self.text.tokens(ids)), ids > 0

    def scored(self, tokens: Tensor, mask: Tensor | None = None) -> Float[Tensor, "b n d"]:
        """What the arm compares: all tokens, or their mean."""
        if not self.pooled:
            return tokens
        weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens)
        return (tokens * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1, keepdim=True)

    def similarity(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        text, mask = self.words(ids)
        mask = mask[:, :1] if self.pooled else mask
        return filip.token_similarity(self.scored(self.patches(pixels)), self.scored(text, ids > 0), text_mask=mask)


def localisation(run: Run, model: TokenTowers, test: data.Listed) -> float:
    """Of patches that are aligned with a thing: the share that shows it, less that of the whole picture."""
    texts = [data.full_caption(things) for things in test.things]
    patches, (words, real) = model.patches(test.pixels), model.words(data.encode(texts))
    gains, maps = [], []
    for i in range(len(test)):
        alignment = filip.word_patch_alignment(patches[i], words[i], real[i])
        for k, share in enumerate(test.share[i]):
            label = filip.label_patch_map(alignment, [5 * k, 5 * k + 1], (data.GRID, data.GRID), has_cls=False)
            gains.append(float(share[label.flatten()].mean() - share.mean()) if label.any() else 0.0)
            maps.append(label.repeat_interleave(data.PATCH, 0).repeat_interleave(data.PATCH, 1))
    if run.arm in ("filip", "global"):
        shown = [test.pixels[i // 3].permute(1, 2, 0) * (0.35 + 0.65 * maps[i][..., None]) for i in range(12)]
        named = [" ".join(test.things[i // 3][i % 3][:2]) for i in range(12)]
        run.figure("word_patch.png", figures.picture_grid(shown, named, columns=6))
    return sum(gains) / len(gains)
