"""The pre-norm transformer that both towers of CLIP, and most methods here, are made of.

    x ← x + attention(ln_1(x))          x ← x + mlp(ln_2(x))

The parameters carry the names of OpenAI's CLIP release (``resblocks.0.attn.in_proj_weight``, ``mlp.c_fc`` …), so that
its weights load as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from foveal.nn.attention import MultiHeadAttention, Rotary


def quick_gelu(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """x · σ(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def swiglu(x: Float[Tensor, "*s two_d"]) -> Float[Tensor, "*s d"]:
    """silu(first half) · second half: Shazeer, GLU Variants Improve Transformer, 2020, arXiv 2002.05202."""
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu, "swiglu": swiglu}


class MLP(nn.Module):
    """Linear, activation, linear. "swiglu" gates, so its first map is twice as wide as ``hidden``."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.c_fc = nn.Linear(width, hidden * (2 if activation == "swiglu" else 1))
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*s d"]) -> Float[Tensor, "*s d"]:
        return self.c_proj(ACTIVATIONS[self.activation](self.c_fc(x)))


class Block(nn.Module):
    """One layer. ``drop_path`` is the probability that a sample skips a branch in training (stochastic depth)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, activation: str = "gelu", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, round(width * mlp_ratio), activation)
        self.ln_2 = nn.LayerNorm(width)
        self.drop_path = drop_path

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Shaped[Tensor, "*mask"] | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> Float[Tensor, "b n d"]:
        """See `MultiHeadAttention.forward`; ``block.attn.with_weights(block.ln_1(x))`` shows where a layer looks."""
        x = x + self._thin(self.attn(self.ln_1(x), mask=mask, causal=causal, rotary=rotary))
        return x + self._thin(self.mlp(self.ln_2(x)))

    def _thin(self, branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if not self.training or self.drop_path == 0:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path)


class Transformer(nn.Module):
    """A stack of `Block`s. ``drop_path`` grows linearly to its value in the last layer."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: must be in [0, 1)")
        rates = [drop_path * layer / max(layers - 1, 1) for layer in range(layers)]
        blocks = [Block(width, heads, mlp_ratio, activation, rate) for rate in rates]
        self.resblocks = nn.ModuleList(blocks)
        residual = (width * 2 * layers) ** -0.5  # CLIP's: branches start smaller the more of them are added up
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)
            nn.init.zeros_(block.mlp.c_fc.bias)
            nn.init.zeros_(block.mlp.c_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Shaped[Tensor, "*mask"] | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Output of the last layer; no norm follows it here."""
        for block in self.resblocks:
            x = block(x, mask=mask, causal=causal, rotary=rotary)
        return x

    def hidden_states(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Shaped[Tensor, "*mask"] | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """The input and the output of every layer: layers + 1 tensors, the last one is what `forward` gives."""
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], mask=mask, causal=causal, rotary=rotary))
        return states
