"""Pushing a language model from inside: a vector added to what one of its blocks gives for the current token.

    e_l(P) = mean over the tokens of P of H_l(P)          offset = α · (e_l(P⁺) − e_l(P⁻))

where H_l are the hidden states after block l, counted from 0 (``hidden_states[l + 1]`` of Hugging Face). Mirza et al.
(GLOV), arXiv 2410.06154, section 3.3.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn


def sentence_embedding(
    hidden: Float[Tensor, "b l d"], mask: Num[Tensor, "b l"] | Bool[Tensor, "b l"]
) -> Float[Tensor, "b d"]:
    """The mean of a row's hidden states where ``mask`` is not 0, in float32 or better: sums of half precision overflow.

    ValueError for a row without any token.
    """
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and mask {tuple(mask.shape)} must be (B, L, D) and (B, L)")
    kept = mask != 0
    if not bool(kept.any(1).all()):
        raise ValueError(f"mask leaves row {int((~kept.any(1)).nonzero()[0])} no token: every text needs at least one")
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    # not a product with the mask: what is padded may hold NaN
    return wide.masked_fill(~kept[..., None], 0).sum(1) / kept.sum(1, keepdim=True)


def offset_vector(
    positive: Float[Tensor, "p d"],
    negative: Float[Tensor, "n d"],
    *,
    alpha: float = 1.0,
    pos_mask: Num[Tensor, " p"] | Bool[Tensor, " p"] | None = None,
    neg_mask: Num[Tensor, " n"] | Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, " d"]:
    """From the mean of the negative text's hidden states to that of the positive one's, times ``alpha``.

    Each is averaged over its own tokens (those of its mask), in float32 or better. ValueError when the widths differ,
    and for a text without any token.
    """
    if positive.ndim != 2 or negative.ndim != 2 or positive.shape[1] != negative.shape[1]:
        raise ValueError(
            f"positive {tuple(positive.shape)} and negative {tuple(negative.shape)} must be (tokens, D) of one width: "
            "take both from the same block of the same model"
        )
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: must be a finite number")
    ends = []
    for name, hidden, mask in (("positive", positive, pos_mask), ("negative", negative, neg_mask)):
        every = hidden.new_ones(1, len(hidden)) if mask is None else mask[None]
        if not bool((every != 0).any()):
            raise ValueError(f"{name} {tuple(hidden.shape)} has no token that counts: every text needs at least one")
        ends.append(sentence_embedding(hidden[None], every)[0])
    return alpha * (ends[0] - ends[1])


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a Hugging Face decoder, first one first; ValueError for a model built otherwise."""
    for path in ("model.layers", "layers", "transformer.h", "h"):
        place: Any = model
        for name in path.split("."):
            place = getattr(place, name, None)
        if isinstance(place, nn.ModuleList):
            return place
    raise ValueError(
        f"model={type(model).__name__} keeps its blocks neither in model.layers nor in transformer.h: give a decoder "
        "of the Llama or GPT-2 family"
    )


def hidden_after(model: Any, ids: Tensor, layer: int) -> Float[Tensor, "l d"]:
    """Hidden states of one text (token ids, (L,)) after block ``layer``, before any final normalisation."""
    found: list[Tensor] = []
    handle = _block(model, layer).register_forward_hook(lambda _, __, output: found.append(_states(output)))
    try:
        with torch.no_grad():
            model(ids[None].to(model.device))
    finally:
        handle.remove()
    return found[0][0]


class LayerSteering:
    """While it is entered, ``vector`` is added to the output of block ``layer`` at the last position of every call.

    With ``generate`` and a cache that is the last token of the prompt and then every new token; what later blocks keep
    of it in the cache persists. With ``use_cache=False`` only the current last token is ever steered. Pad the prompts
    of a batch on the left. Entering twice adds twice; leaving removes the hook, after an exception too.

    Args:
        model: a Hugging Face decoder, with or without its language-model head.
        layer: block, from 0.
        vector: (D,), the width of the model.

    Raises:
        ValueError: no such layer, or a vector that is not finite or has another width.
    """

    def __init__(self, model: Any, layer: int, vector: Float[Tensor, " d"]) -> None:
        self.model, self.layer = model, layer
        self._target = _block(model, layer)
        width = getattr(getattr(model, "config", None), "hidden_size", None)
        if vector.ndim != 1 or (width is not None and len(vector) != width):
            raise ValueError(f"vector {tuple(vector.shape)} must be (D,) with the width of the model, D={width}")
        if not bool(vector.isfinite().all()):
            raise ValueError("vector holds NaN or infinity: check the hidden states that it comes from")
        self.vector = vector.detach().clone()
        self._handles: list[Any] = []

    def __enter__(self) -> LayerSteering:
        # first of all: transformers' own hooks, left behind by output_hidden_states=True, are to report what is steered
        self._handles.append(self._target.register_forward_hook(self._steer, prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles.pop().remove()

    def _steer(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        states = _states(output).clone()  # the block may hand out a tensor that others hold, too
        states[:, -1] += self.vector.to(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def _block(model: Any, layer: int) -> nn.Module:
    blocks = decoder_blocks(model)
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer={layer}: the model has {len(blocks)} blocks, numbered 0 to {len(blocks) - 1}")
    return blocks[layer]


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
