"""The text side of prefix conditioning: vectors in front of the embedded tokens, and the pooling that skips them."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextModel

CAPTION, LABEL = 0, 1
POOLS = ("eot", "cls", "mean")


def prepend_prefix(
    token_embeddings: Float[Tensor, "b l w"], prefix: Float[Tensor, "s p w"], source: Int[Tensor, " b"] | int
) -> Float[Tensor, "b p_plus_l w"]:
    """[prefix of the source; tokens], row by row; ``source``: one for all rows, or one for each, in [0, S)."""
    if token_embeddings.ndim != 3 or prefix.ndim != 3 or token_embeddings.shape[2] != prefix.shape[2]:
        shapes = f"token_embeddings {tuple(token_embeddings.shape)} and prefix {tuple(prefix.shape)}"
        raise ValueError(f"{shapes} must be (B, L, W) and (S, p, W) of one width W")
    rows, device = len(token_embeddings), token_embeddings.device
    sources = torch.as_tensor(source, device=device)
    if sources.is_floating_point() or sources.shape not in ((), (rows,)):
        shape = f"{tuple(sources.shape)} of {sources.dtype}"
        raise ValueError(f"source {shape} must be one whole number, or one for each of {rows} rows")
    if bool(((sources < 0) | (sources >= len(prefix))).any()):
        raise ValueError(f"source={sources.tolist()}: must be in [0, {len(prefix)}), the rows of prefix")
    chosen = prefix[sources.long().expand(rows)].to(token_embeddings.dtype)
    return torch.cat([chosen, token_embeddings], 1)


def extend_mask(attention_mask: Shaped[Tensor, "b l"], prefix_length: int) -> Bool[Tensor, "b p_plus_l"]:
    """The mask of real tokens with ``prefix_length`` more of them in front."""
    if attention_mask.ndim != 2 or prefix_length < 0:
        shape = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask {shape} must be (B, L), and prefix_length={prefix_length} not negative")
    mask = attention_mask.bool()
    return torch.cat([mask.new_ones(len(mask), prefix_length), mask], 1)


class PrefixTextEncoder(nn.Module):
    """Token ids and where the text comes from -> one feature each, not normalised.

    Args:
        token_embedding: ids -> vectors of width W.
        encoder: called with embeddings (B, p+L, W) and a boolean mask (B, p+L), adds its own positions, counted from
            the first prefix vector, and returns (B, p+L, W); such as `CLIPTextBody`.
        prefix_length: p, vectors for each source.
        num_sources: S, usually one for each corpus or kind of corpus.
        pool: "eot" takes the last real token, "cls" the first, "mean" averages them; the prefix is never pooled.
        projection: applied to what was pooled.
    """

    def __init__(
        self,
        token_embedding: nn.Embedding,
        encoder: nn.Module,
        *,
        prefix_length: int = 1,
        num_sources: int = 2,
        pool: str = "eot",
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("prefix_length", prefix_length), ("num_sources", num_sources)):
            if count < 1:
                raise ValueError(f"{name}={count}: must be at least 1")
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown: choose one of {', '.join(POOLS)}")
        self.token_embedding, self.encoder, self.projection, self.pool = token_embedding, encoder, projection, pool
        weight = token_embedding.weight
        self.prefix = nn.Parameter(0.02 * torch.randn(num_sources, prefix_length, weight.shape[1]).to(weight))

    @classmethod
    def from_clip(cls, model: "CLIPModel", prefix_length: int = 1, num_sources: int = 2) -> "PrefixTextEncoder":
        """The text tower of transformers' CLIP with prefixes; its weights are shared, training this trains that."""
        body = CLIPTextBody(model.text_model, prefix_length)
        return cls(
            model.text_model.embeddings.token_embedding,
            body,
            prefix_length=prefix_length,
            num_sources=num_sources,
            projection=model.text_projection,
        )

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        attention_mask: Shaped[Tensor, "b l"],
        source: Int[Tensor, " b"] | int = CAPTION,
    ) -> Float[Tensor, "b d"]:
        """Features; ``attention_mask`` is a tokenizer's, padded on the right, with a real token in every row."""
        mask = _right_padded(input_ids, attention_mask)
        length = self.prefix.shape[1]
        embedded = prepend_prefix(self.token_embedding(input_ids), self.prefix, source)
        states = self.encoder(embedded, extend_mask(mask, length))[:, length:]
        pooled = self._pooled(states, mask)
        return pooled if self.projection is None else self.projection(pooled)

    def _pooled(self, states: Float[Tensor, "b l w"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b w"]:
        if self.pool == "cls":
            return states[:, 0]
        if self.pool == "eot":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return states.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def _right_padded(input_ids: Tensor, attention_mask: Tensor) -> Bool[Tensor, "b l"]:
    if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
        shapes = f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}"
        raise ValueError(f"{shapes} must both be (B, L)")
    mask = attention_mask.bool()
    lengths = mask.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    if wrong := ((mask != (places < lengths[:, None])).any(1) | (lengths == 0)).nonzero().flatten().tolist():
        empty = "has no real token: give it the start and the end token at least"
        left = "is not padded on the right: set the tokenizer's padding_side to 'right'"
        raise ValueError(f"attention_mask row {wrong[0]} {empty if lengths[wrong[0]] == 0 else left}")
    return mask


class CLIPTextBody(nn.Module):
    """The layers of transformers' CLIP text tower, fed with embeddings; its weights are shared.

    Every token keeps the position that the checkpoint learned for it: the positions of the ``prefix_length`` prefix
    vectors are new rows in front of the table, zero at first.
    """

    def __init__(self, text_model: "CLIPTextModel", prefix_length: int = 1) -> None:
        super().__init__()
        if prefix_length < 1:
            raise ValueError(f"prefix_length={prefix_length}: must be at least 1")
        self.position_embedding = text_model.embeddings.position_embedding
        self.layers, self.final_layer_norm = text_model.encoder, text_model.final_layer_norm
        self.prefix_positions = nn.Parameter(torch.zeros_like(self.position_embedding.weight[:prefix_length]))

    def forward(self, embeddings: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        """Last hidden states. Attention is causal, so that real tokens never see the padding to their right."""
        positions = torch.cat([self.prefix_positions, self.position_embedding.weight])
        length = embeddings.shape[1]
        if length > len(positions):
            text, longest = length - len(self.prefix_positions), len(self.position_embedding.weight)
            raise ValueError(f"texts of {text} tokens: the text tower reads {longest} at most, truncate them")
        x = embeddings + positions[:length]
        future = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        return self.final_layer_norm(self.layers(inputs_embeds=x, attention_mask=future[None, None]).last_hidden_state)
