"""Text transformer: token and position embeddings, causal or bidirectional layers, one feature from the end token.

Parameter names are those of OpenAI's CLIP release.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from foveal.nn.attention import padding_mask
from foveal.nn.transformer import Transformer


def at_end_token(tokens: Float[Tensor, "b l d"], token_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """The token at the first place of the largest id of each row: in CLIP's vocabulary that is the end token."""
    return tokens[torch.arange(len(tokens), device=tokens.device), token_ids.argmax(1)]


class TextTransformer(nn.Module):
    """Token ids -> one feature each (`forward`), or one per token (`tokens`).

    Args:
        context_length: the longest text, in tokens.
        output_dim: width of the feature after ``text_projection``; None leaves out ``text_projection``.
        causal: a token sees only what is before it; then nothing after the end token matters, padding included.
    """

    def __init__(
        self,
        context_length: int,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        *,
        output_dim: int | None = None,
        causal: bool = True,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        for label, size in (("context_length", context_length), ("vocab_size", vocab_size)):
            if size < 1:
                raise ValueError(f"{label}={size}: must be at least 1")
        self.context_length, self.causal = context_length, causal
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        self.transformer = Transformer(width, layers, heads, activation=activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = (
            None if output_dim is None else nn.Parameter(width**-0.5 * torch.randn(width, output_dim))
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def tokens(
        self, token_ids: Int[Tensor, "b l"], attention_mask: Shaped[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """All tokens after the last layer and ``ln_final``. ``attention_mask`` is a tokenizer's: 1 for real tokens."""
        if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= self.context_length:
            raise ValueError(
                f"token_ids {tuple(token_ids.shape)} must be (B, L) with L at most context_length={self.context_length}"
            )
        x = self.token_embedding(token_ids) + self.positional_embedding[: token_ids.shape[1]]
        mask = None if attention_mask is None else padding_mask(attention_mask)
        return self.ln_final(self.transformer(x, mask=mask, causal=self.causal))

    def forward(
        self, token_ids: Int[Tensor, "b l"], attention_mask: Shaped[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b e"]:
        """The end token's feature, not normalised."""
        pooled = at_end_token(self.tokens(token_ids, attention_mask), token_ids)
        return pooled if self.text_projection is None else pooled @ self.text_projection
