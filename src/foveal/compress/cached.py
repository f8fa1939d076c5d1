"""What must be known of a reduced prompt while its cache lives, and how later tokens attend to it.

The record rides on the cache object: two chats keep apart, and a deep copy of a cache carries its own record. Later
tokens are never dropped; layer l sees the prompt's surviving keys of that layer and all later ones.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.masks import causal_mask

RECORD = "_foveal_prompt"
END = "_foveal_prompt_end"


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a model or a layer, whichever of its two names they use."""
    return arguments["cache"] if arguments.get("cache") is not None else arguments.get("past_key_values")


@dataclass
class ReducedPrompt:
    """Per layer: which stored keys of the prompt are valid, and what to subtract from later positions.

    None at layers that got the prompt as it was. Layers that processed the same tokens share the tensors.
    """

    columns: int
    """Length of the prompt as passed."""
    valid: list[Bool[Tensor, "b k"] | None]
    shift: list[Int[Tensor, " b"] | None]

    def later(self, cache: Any) -> int:
        """Tokens stored after the prompt. ValueError when a crop has cut into the prompt itself.

        Cropping takes the same number of tokens off every layer. Before transformers 5.24 speculative decoding crops to
        an absolute length instead, which cannot be right for layers that differ.
        """
        prompt = [self.columns if valid is None else valid.shape[1] for valid in self.valid]
        later = {layer.get_seq_length() - own for layer, own in zip(cache.layers, prompt, strict=True)}
        if len(later) > 1 or min(later) < 0:
            raise ValueError(
                "past_key_values was cropped into its reduced prompt; run the prompt again, and crop by a number of "
                "tokens, not to a length"
            )
        return later.pop()


def remember(cache: Any, prompt: ReducedPrompt) -> None:
    """Put the record on the cache. Where layer 0 is short too, the cache goes on counting the prompt in full."""
    setattr(cache, RECORD, prompt)
    if prompt.valid[0] is not None and not isinstance(cache, _CountsInFull):
        cache.__class__ = type(type(cache).__name__, (_CountsInFull, type(cache)), {})


def forget(cache: Any) -> None:
    """Take the records of an earlier prompt off the cache."""
    for name in (RECORD, END):
        if hasattr(cache, name):
            delattr(cache, name)


def recall(cache: Any) -> ReducedPrompt | None:
    """The record on a cache, if a reduced prompt is in it."""
    return getattr(cache, RECORD, None)


def note_end(cache: Any, tokens: int) -> None:
    """Note that the prompt goes at least as far as that many tokens."""
    setattr(cache, END, tokens)


def warn_of_pieces(cache: Any, new: int, has_pictures: bool) -> None:
    """Warn when ``new`` tokens bring images to a prompt that began in an earlier forward pass: they all stay.

    Images of a later turn of a chat may come: single tokens, the answer, have followed the prompt by then. Several
    tokens right after a prompt may be a further piece of it.
    """
    end, held = getattr(cache, END, None), cache.get_seq_length()
    if end is not None and end != held:
        return
    if has_pictures:
        warnings.warn(
            f"input_ids brings images to past_key_values of {held} tokens, the beginning of the same prompt: none of "
            "their tokens is dropped, since that takes a prompt that comes whole, in one forward pass on an empty "
            "cache (prefill_chunk_size=None)",
            stacklevel=2,
        )
    if end is not None and new > 1:
        note_end(cache, end + new)


class _CountsInFull:
    """Generation asks, naming no layer, how many tokens the cache has seen: to slice prompts and to count positions."""

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        prompt = recall(self)
        whole: Any = super()  # the cache's own class, see `remember`
        stored: int = whole.get_seq_length(layer_idx or 0)
        if prompt is None or layer_idx is not None or stored == 0:
            return stored
        assert prompt.valid[0] is not None
        return prompt.columns + stored - prompt.valid[0].shape[1]


class Continuation:
    """One forward pass over tokens that come after a reduced prompt."""

    def __init__(self, anatomy: Anatomy, cache: Any, arguments: Mapping[str, Any], batch: int, new: int) -> None:
        prompt = recall(cache)
        assert prompt is not None
        rows = next(len(valid) for valid in prompt.valid if valid is not None)
        if rows not in (1, batch):  # a prompt of one row may have been repeated
            raise ValueError(
                f"past_key_values holds a reduced prompt of {rows} rows, the new tokens have {batch}; run the prompt "
                "again with that batch"
            )
        self.anatomy, self.prompt, self.new = anatomy, prompt, new
        self.later = prompt.later(cache) + new
        self.mask_2d = arguments.get("attention_mask")
        seen = prompt.columns + self.later
        if self.mask_2d is not None and (self.mask_2d.ndim != 2 or self.mask_2d.shape[1] != seen):
            raise ValueError(
                f"attention_mask {tuple(self.mask_2d.shape)} must be (batch, {seen}): one column for each token of the "
                "whole prompt as it was passed and for each later one"
            )
        self._masks: dict[int, Tensor | None] = {}
        self._ropes: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, layer: int, hidden: Float[Tensor, "b q d"], arguments: dict[str, Any]) -> None:
        """Give one layer the mask over its own keys and, where tokens were renumbered, its own positions."""
        valid, shift = self.prompt.valid[layer], self.prompt.shift[layer]
        if valid is None:
            return
        if id(valid) not in self._masks:
            keys = torch.cat([_rows(valid, hidden), self._later_valid(hidden)], 1)
            kernel = self.anatomy.language.config._attn_implementation
            self._masks[id(valid)] = causal_mask(kernel, keys, self.new, hidden.dtype)
        mask = self._masks[id(valid)]
        arguments["attention_mask"] = None if mask is None else mask.to(hidden.device)
        if shift is not None:
            positions = arguments["position_ids"] - _rows(shift, hidden)[:, None]
            if id(shift) not in self._ropes:
                self._ropes[id(shift)] = self.anatomy.language.rotary_emb(hidden, positions)
            arguments["position_embeddings"] = self._ropes[id(shift)]
            arguments["position_ids"] = positions

    def _later_valid(self, hidden: Tensor) -> Bool[Tensor, "b t"]:
        if self.mask_2d is None:
            return torch.ones(len(hidden), self.later, dtype=torch.bool, device=hidden.device)
        return self.mask_2d[:, self.prompt.columns :].to(hidden.device, torch.bool)


def _rows(part: Tensor, hidden: Tensor) -> Tensor:
    """The prompt's rows, one for each row of the batch."""
    return part.to(hidden.device).expand(len(hidden), *part.shape[1:])
