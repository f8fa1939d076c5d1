"""The Prompter of CLOC: one transformer layer that turns the tokens of an image and a prompt into a region's vector.

    x = [prompt; tokens],   x ← x + attention(norm1(x)),   x ← x + fc2(gelu(fc1(norm2(x)))),   norm_out(x), pooled

Every prompt has such a sequence of its own, so the vector of a box does not depend on the other boxes. The sequences
of one image differ in a single key, which is used: attention among the image tokens is computed once, and a prompt's
key then takes the share σ(q · k / √d − log Σ exp) of what each query has seen. With ``pool="prompt"`` the image tokens
need no output at all. See `foveal.pretrain.cloc`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLACK = 1e-6
"""How far beyond [0, 1] a coordinate may lie: what rounding does to a share of a picture."""


def encode_boxes(boxes: Float[Tensor, "*n 4"], num_frequencies: int = 8) -> Float[Tensor, "*n 8f"]:
    """Sines and cosines of x1, y1, x2, y2: for each in turn sin(2^k π c), k = 0 … F − 1, then the F cosines.

    Args:
        boxes: corners in shares of the picture, from 0 to 1; a point is a box with equal corners.

    Raises ValueError for boxes in pixels, with corners in the wrong order, or without 4 numbers.
    """
    if num_frequencies < 1:
        raise ValueError(f"num_frequencies={num_frequencies}: must be at least 1")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes {tuple(boxes.shape)} must end in 4 numbers for each box")
    if not are_shares(boxes):
        found = f"from {boxes.min().item():g} to {boxes.max().item():g}"
        raise ValueError(
            f"boxes hold numbers {found}: must be finite x1 ≤ x2, y1 ≤ y2 from 0 to 1, shares of width and height"
        )
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    octaves = math.pi * 2.0 ** torch.arange(num_frequencies, dtype=boxes.dtype, device=boxes.device)
    angles = boxes[..., None] * octaves
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def are_shares(boxes: Float[Tensor, "*n 4"]) -> bool:
    """Are all boxes corners in the right order, in shares of the picture?"""
    inside = (boxes >= -SLACK) & (boxes <= 1 + SLACK)  # not so for NaN
    return bool(inside.all() and (boxes[..., 2:] >= boxes[..., :2]).all())


class Prompter(nn.Module):
    """Image tokens (B, N, D) and prompts (B, M, D), made by `embed_boxes` or `embed_text`, -> (B, M, D).

    Args:
        dim: D.
        text_dim: width of the text embeddings that serve as prompts.
        pool: "mean" of all N + 1 positions, as in the paper, or the position of the "prompt".
    """

    def __init__(
        self,
        dim: int,
        text_dim: int,
        num_heads: int = 1,
        num_frequencies: int = 8,
        mlp_ratio: float = 4.0,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("mean", "prompt"):
            raise ValueError(f"pool={pool!r} is unknown: choose mean or prompt")
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must be at least 1 and divide dim={dim}")
        if num_frequencies < 1:
            raise ValueError(f"num_frequencies={num_frequencies}: must be at least 1")
        self.dim, self.text_dim, self.num_frequencies, self.pool = dim, text_dim, num_frequencies, pool
        self.box_proj = nn.Linear(8 * num_frequencies, dim)
        self.text_proj = nn.Linear(text_dim, dim)
        self.norm1, self.norm2, self.norm_out = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.fc1 = nn.Linear(dim, round(dim * mlp_ratio))
        self.fc2 = nn.Linear(self.fc1.out_features, dim)

    def embed_boxes(self, boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m d"]:
        """Prompts from boxes; see `encode_boxes`."""
        if boxes.ndim != 3:
            raise ValueError(f"boxes {tuple(boxes.shape)} must be (B, M, 4)")
        return self.box_proj(encode_boxes(boxes, self.num_frequencies).to(self.box_proj.weight.dtype))

    def embed_text(self, text: Float[Tensor, "b m e"]) -> Float[Tensor, "b m d"]:
        """Prompts from text embeddings."""
        if text.ndim != 3 or text.shape[2] != self.text_dim:
            raise ValueError(f"text {tuple(text.shape)} must be (B, M, text_dim={self.text_dim})")
        return self.text_proj(text)

    def forward(self, tokens: Float[Tensor, "b n d"], prompts: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        """What every prompt stands for in its image."""
        for name, x, axes in (("tokens", tokens, "N"), ("prompts", prompts, "M")):
            if x.ndim != 3 or x.shape[2] != self.dim or len(x) != len(tokens):
                wanted = f"(B, {axes}, dim={self.dim}), B as in the others"
                raise ValueError(f"{name} {tuple(x.shape)} must be {wanted}")
        at_prompt, at_image = self._attend(self.norm1(tokens), self.norm1(prompts))
        prompt = self._finish(prompts + at_prompt)
        if at_image is None:
            return prompt
        image = self._finish(tokens[:, None] + at_image)
        return (prompt + image.sum(2)) / (1 + tokens.shape[1])

    def _finish(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.norm_out(x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _attend(
        self, tokens: Float[Tensor, "b n d"], prompts: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m n d"] | None]:
        """Output of self-attention over [prompt; tokens], at each prompt and, if they are pooled, at its tokens."""
        query, key, value = self._heads(tokens)
        own_query, own_key, own_value = self._heads(prompts)
        seen = self._look(own_query, key, value)
        own_score = (own_query * own_key).sum(-1, keepdim=True)
        at_prompt = self._merge(_admit(own_score, own_value, *seen))
        if self.pool == "prompt":
            return at_prompt, None
        value_seen, log_sum = self._look(query, key, value)
        score = (own_key @ query.mT)[..., None]  # (b, h, m, n, 1)
        at_image = _admit(score, own_value[:, :, :, None], value_seen[:, :, None], log_sum[:, :, None])
        return at_prompt, self._merge(at_image)

    def _heads(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query (over √d), key and value, each (b, heads, n, d / heads)."""
        parts = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2) for part in parts)
        return query / math.sqrt(query.shape[-1]), key, value

    def _look(
        self, query: Float[Tensor, "b h q e"], key: Float[Tensor, "b h n e"], value: Float[Tensor, "b h n e"]
    ) -> tuple[Float[Tensor, "b h q e"], Float[Tensor, "b h q 1"]]:
        """What the queries see among the image tokens, and the logarithm of the softmax's denominator."""
        scores = query @ key.mT
        return scores.softmax(-1) @ value, scores.logsumexp(-1, keepdim=True)

    def _merge(self, x: Float[Tensor, "b h *n e"]) -> Float[Tensor, "b *n d"]:
        """Heads side by side, through the output projection."""
        return self.attn.out_proj(x.movedim(1, -2).flatten(-2))


def _admit(score: Tensor, value: Tensor, seen: Tensor, log_sum: Tensor) -> Tensor:
    """One more key in a softmax that is already done: it gets its share, the others keep the rest."""
    return seen + (score - log_sum).sigmoid().to(seen.dtype) * (value - seen)
