"""Attention: softmax(Q Kᵀ / √d + mask) V, the masks it takes, rotary positions, and the multi-head module.

Everything runs on torch's fused kernels. They never store the weights; who wants to look at those asks
`attention_with_weights`, which is slower and gives the same output.

A mask is boolean (True: may be looked at) or additive (0 or −inf, or any bias), and broadcasts to (b, heads, n, m).
A query that may look nowhere gets zeros.

Rotary positions: Su et al., RoFormer, 2021, arXiv 2104.09864; here feature i turns with feature i + d/2, as in Llama.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Rotary = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]


def causal_mask(n: int, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
    """Position i sees 0..i."""
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def prefix_mask(n: int, prefix: int, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
    """The first ``prefix`` positions see each other, every later one sees them and what is not after itself."""
    if not 0 <= prefix <= n:
        raise ValueError(f"prefix={prefix}: must be between 0 and the length, {n}")
    mask = causal_mask(n, device)
    mask[:, :prefix] = True
    return mask


def padding_mask(valid: Shaped[Tensor, "b m"]) -> Bool[Tensor, "b 1 1 m"]:
    """A mask that hides padding, from a tokenizer's ``attention_mask`` (1 or True: a real token)."""
    if valid.ndim != 2:
        raise ValueError(f"valid {tuple(valid.shape)} must be (batch, length)")
    return valid.bool()[:, None, None, :]


def attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h m d"],
    value: Float[Tensor, "b h m e"],
    mask: Shaped[Tensor, "*mask"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h n e"]:
    """Attention on torch's fused kernels; ``causal`` (only for n = m) and ``mask`` may be combined."""
    if not causal or mask is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=_joined(query, key, mask, causal))
    _check_square(query, key)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)  # kernels that skip the hidden half


def attention_with_weights(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h m d"],
    value: Float[Tensor, "b h m e"],
    mask: Shaped[Tensor, "*mask"] | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n m"]]:
    """The output of `attention`, and the weights: they sum to 1 over the keys (to 0 for a query that sees nothing)."""
    mask = _joined(query, key, mask, causal)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0).softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights.masked_fill(blind, 0).to(value.dtype)
    return weights @ value, weights


def rotary_table(positions: Shaped[Tensor, " n"], dim: int, base: float = 10_000.0) -> Rotary:
    """Cosines and sines that turn ``dim`` features at the given positions; float32, on the device of ``positions``."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim={dim}: must be even, features turn in pairs")
    frequencies = base ** -(torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = torch.outer(positions.float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "*b n d"], rotary: Rotary) -> Float[Tensor, "*b n d"]:
    """Turn queries or keys by their positions: afterwards their product depends on the distance alone."""
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Self- or cross-attention with the parameter names of ``torch.nn.MultiheadAttention``, whose weights load.

    Rows of ``in_proj_weight``: queries, keys, values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"heads={heads}: must be at least 1 and divide width={width}")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m d"] | None = None,
        *,
        mask: Shaped[Tensor, "*mask"] | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``x`` looks at ``context`` (default: at itself). ``rotary`` turns queries and keys, for self-attention."""
        return self._merge(attention(*self._project(x, context, rotary), mask, causal))

    def with_weights(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m d"] | None = None,
        *,
        mask: Shaped[Tensor, "*mask"] | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b h n m"]]:
        """What `forward` gives, and the attention weights of every head."""
        out, weights = attention_with_weights(*self._project(x, context, rotary), mask, causal)
        return self._merge(out), weights

    def _project(self, x: Tensor, context: Tensor | None, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        if context is None:
            parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            query = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
            parts = query, *F.linear(context, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return query, key, value

    def _merge(self, heads: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
        return self.out_proj(heads.transpose(1, 2).flatten(2))


def _joined(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    if not causal:
        return mask
    _check_square(query, key)
    seen = causal_mask(query.shape[-2], query.device)
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))


def _check_square(query: Tensor, key: Tensor) -> None:
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"causal=True needs as many queries as keys, not {query.shape[-2]} and {key.shape[-2]}: give a mask instead"
        )
