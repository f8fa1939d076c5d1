"""The region focus module of `lrs`: a few copied decoder layers that say where in the image the question looks.

Student and teacher are the same computation over different layers: the module's copies, and the language model's own.
At layer l, with x what enters it, q of the query rows and k of the local image tokens:

    logits = RoPE(W_q · norm(x)) · RoPE(W_k · norm(x)) / √d
"""

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.compress.masks import causal_mask


class RegionFocusModule(nn.Module):
    """Copies of the layers ``layer_ids[0] − 1`` and ``layer_ids`` of a language model, trained on their own.

    The first runs on the embeddings; each copy's output is scored by the queries and keys of the next. The state dict
    holds the copies; build the module again from the language model and load it.
    """

    def __init__(self, layers: Iterable[nn.Module], rotary: nn.Module) -> None:
        super().__init__()
        self.layers, self.rotary = nn.ModuleList(layers), rotary

    @classmethod
    def from_language_model(cls, lm: Any, layer_ids: Sequence[int]) -> "RegionFocusModule":
        """Copy from a Hugging Face decoder of the Llama, Mistral or Qwen style, with or without its head.

        Raises ValueError for ``layer_ids`` that are empty, not strictly rising from at least 1, or beyond the depth.
        """
        decoder = _decoder(lm)
        ids = _checked_ids(decoder, layer_ids)
        layers = [copy.deepcopy(decoder.layers[number]).requires_grad_(True) for number in (ids[0] - 1, *ids)]
        return cls(layers, copy.deepcopy(decoder.rotary_emb))

    def forward(
        self,
        inputs_embeds: Float[Tensor, "b l d"],
        query_index: Int[Tensor, " t"],
        local_range: tuple[int, int],
        position_ids: Int[Tensor, "b l"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b k h t n"]:
        """Raw logits of K layers and H heads from T query rows to the n tokens from s to e; −∞ where masked.

        Args:
            inputs_embeds: text, thumbnail, local image tokens, text. No gradient reaches them.
            query_index: rows that ask: the last of the prompt, or in training the one before each answer.
            local_range: (s, e), first local image token and end.
            position_ids: 0 … L − 1 if None.
            attention_mask: False where nobody may look, as at tokens of tiles that were not fetched.

        Raises ValueError for an empty or outer range, rows outside of the sequence, and rows that see no local token.
        """
        scored = range(1, len(self.layers))
        return _logits(
            self.layers,
            scored,
            self.rotary,
            inputs_embeds.detach(),
            query_index,
            local_range,
            position_ids,
            attention_mask,
        )

    def scores(
        self,
        inputs_embeds: Float[Tensor, "b l d"],
        query_index: Int[Tensor, " t"],
        local_range: tuple[int, int],
        position_ids: Int[Tensor, "b l"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Attention of the last layer to each local token, softmax over these alone; mean over heads and query rows."""
        logits = self(inputs_embeds, query_index, local_range, position_ids, attention_mask)[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).mean((1, 2))


@torch.no_grad()
def language_model_logits(
    lm: Any,
    layer_ids: Sequence[int],
    inputs_embeds: Float[Tensor, "b l d"],
    query_index: Int[Tensor, " t"],
    local_range: tuple[int, int],
    position_ids: Int[Tensor, "b l"] | None = None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b k h t n"]:
    """The teacher of distillation: what the language model's own layers ``layer_ids`` look at.

    Arguments and errors as in `RegionFocusModule`. Layers after the last of ``layer_ids`` are not run.
    """
    decoder = _decoder(lm)
    ids = _checked_ids(decoder, layer_ids)
    return _logits(
        decoder.layers, ids, decoder.rotary_emb, inputs_embeds, query_index, local_range, position_ids, attention_mask
    )


def _decoder(lm: Any) -> Any:
    decoder = lm if hasattr(lm, "layers") else lm.get_decoder()
    if not hasattr(decoder, "layers") or not hasattr(decoder, "rotary_emb"):
        raise ValueError(f"lm={type(lm).__name__} has no decoder layers with rotary positions; give e.g. a LlamaModel")
    return decoder


def _checked_ids(decoder: Any, layer_ids: Sequence[int]) -> tuple[int, ...]:
    ids, depth = tuple(layer_ids), len(decoder.layers)
    if not ids or ids[0] < 1 or ids[-1] >= depth or any(a >= b for a, b in pairwise(ids)):
        raise ValueError(f"layer_ids={ids} must rise strictly within 1 to {depth - 1}, the layers that have one before")
    return ids


def _logits(
    layers: Any,
    scored: Sequence[int],
    rotary: Any,
    hidden: Float[Tensor, "b l d"],
    query_index: Int[Tensor, " t"],
    local_range: tuple[int, int],
    position_ids: Int[Tensor, "b l"] | None,
    attention_mask: Bool[Tensor, "b l"] | None,
) -> Float[Tensor, "b k h t n"]:
    """Run ``layers`` in their order as far as needed; before each of ``scored`` take the logits of its own q and k."""
    batch, length, _ = hidden.shape
    query_index = torch.as_tensor(query_index, device=hidden.device)
    valid = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if attention_mask is not None:
        if attention_mask.shape != valid.shape:
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be {(batch, length)} as inputs_embeds")
        valid = attention_mask.bool()
    visible = _visible(valid, query_index, local_range)
    if position_ids is None:
        position_ids = torch.arange(length, device=hidden.device)[None]
    rope = rotary(hidden, position_ids)
    kernel = layers[0].self_attn.config._attn_implementation
    mask = causal_mask(kernel, valid, length, hidden.dtype)
    collected = []
    for number, layer in enumerate(layers):
        if number in scored:
            logits = _text_to_local(layer, hidden, rope, query_index, local_range)
            collected.append(logits.masked_fill(~visible[:, None], -torch.inf))
        if number == scored[-1]:
            break
        hidden = layer(hidden, attention_mask=mask, position_ids=position_ids, position_embeddings=rope)
    return torch.stack(collected, 1)


def _visible(
    valid: Bool[Tensor, "b l"], query_index: Int[Tensor, " t"], local_range: tuple[int, int]
) -> Bool[Tensor, "b t n"]:
    """Which local tokens each query row may look at: valid ones, not after it."""
    (start, end), length = local_range, valid.shape[1]
    if not 0 <= start < end <= length:
        raise ValueError(f"local_range={local_range} must be (first, end) of local tokens in a sequence of {length}")
    if query_index.ndim != 1 or not len(query_index) or not bool(((query_index >= 0) & (query_index < length)).all()):
        raise ValueError(f"query_index={query_index.tolist()} must be rows of a sequence of {length}")
    columns = torch.arange(start, end, device=valid.device)
    visible = valid[:, None, start:end] & (columns <= query_index[:, None])
    if not bool(visible.any(-1).all()):
        raise ValueError(
            f"query_index={query_index.tolist()}: a row sees no valid token of local_range={local_range}; ask with "
            "rows after the image, and leave at least one token valid"
        )
    return visible


def _text_to_local(
    layer: Any,
    hidden: Float[Tensor, "b l d"],
    rope: tuple[Tensor, Tensor],
    query_index: Int[Tensor, " t"],
    local_range: tuple[int, int],
) -> Float[Tensor, "b h t n"]:
    """Logits of one layer's own projections; only the rows that are needed are projected."""
    attention, local = layer.self_attn, slice(*local_range)

    def heads(which: str, rows: Any) -> Float[Tensor, "b h m c"]:
        projected = getattr(attention, f"{which}_proj")(normed[:, rows])
        split = projected.view(*projected.shape[:2], -1, attention.head_dim)
        norm = getattr(attention, f"{which}_norm", None)  # Qwen3 has one for each head
        split = (split if norm is None else norm(split)).transpose(1, 2)
        cos, sin = (part[:, None, rows] for part in rope)
        first, second = split.chunk(2, -1)
        return split * cos + torch.cat([-second, first], -1) * sin

    normed = layer.input_layernorm(hidden)
    query, key = heads("q", query_index), heads("k", local)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return query @ key.mT * getattr(attention, "scaling", attention.head_dim**-0.5)
