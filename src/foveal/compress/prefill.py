"""One prefill: the sequence as it gets shorter from layer to layer, with its positions and masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, Rope, Tokens
from foveal.compress.cached import ReducedPrompt, cache_in
from foveal.compress.masks import causal_mask

Keep = list[Int[Tensor, " k"] | None]
"""Per sample: places in the sequence of the image tokens that stay, or None to keep them all."""
Choice = tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]
"""Places in the longer sequence that make up the shorter one, and which of them hold a token."""


@dataclass(frozen=True)
class Stage:
    """The sequence between two drops. As long as nothing was dropped the model's own rope and mask stay in use."""

    tokens: Tokens
    shortened: bool = False
    rope: Rope | None = None
    mask: Tensor | None = None
    positions: Int[Tensor, "b l"] | None = None
    """New consecutive positions; None where the original ones, now with gaps, went on."""
    shift: Int[Tensor, " b"] | None = None
    """What the new numbering subtracts from the positions of later tokens."""

    def rows(self) -> list[Int[Tensor, " n"]]:
        """Per sample the columns of its valid tokens."""
        return [columns[valid] for columns, valid in zip(self.tokens.columns, self.tokens.valid, strict=True)]


class Prefill:
    """The state of one forward pass over a prompt.

    Args:
        ids, valid, labels: ``input_ids``, its padding mask and the labels, all (B, L).
        select: the reducer's choice at a layer; None where nothing is dropped.
        renumber: does a drop at this layer give the tokens new positions 0, 1, …?
        looks_back: hand each layer's input on to the next one as `LayerInput.previous`.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        ids: Int[Tensor, "b l"],
        valid: Bool[Tensor, "b l"],
        labels: Int[Tensor, "b l"] | None,
        select: Callable[[LayerInput], Keep | None],
        renumber: Callable[[int], bool],
        looks_back: bool = False,
    ) -> None:
        self.anatomy, self.select, self.renumber, self.looks_back = anatomy, select, renumber, looks_back
        is_image = torch.isin(ids, torch.tensor(anatomy.placeholders, device=ids.device)) & valid
        columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.n_image: list[int] = is_image.sum(1).tolist()
        self.features: list[Tensor] | None = None
        self.stages = [Stage(Tokens(columns, valid, is_image, labels))]
        """What enters layer 0, 1, … before its own drop; the last one also leaves the decoder."""
        self.choices: list[tuple[Choice | None, bool]] = []
        self.previous: LayerInput | None = None
        self.last_position: Tensor | None = None
        self.cache: Any = None
        self.selection_flops = 0

    def enter(self, layer: int, module: Any, hidden: Float[Tensor, "b l d"], arguments: dict[str, Any]) -> Tensor:
        """The hidden states that the layer shall process; its mask and positions are put into ``arguments``."""
        stage = self.stages[layer]
        rope = stage.rope or arguments["position_embeddings"]
        seen = (stage.tokens, self.n_image, self.features, self._spend)
        step = LayerInput(layer, module, hidden, rope, *seen, self.previous)
        if layer < len(self.choices):  # gradient checkpointing (before transformers 5.24) recomputes with our hooks
            choice, merged = self.choices[layer]
            if merged:
                self.select(step)
        else:
            keep = self.select(step)
            choice = None if keep is None else _survivors(stage.tokens, keep)
            self.choices.append((choice, step.hidden is not hidden))
            self.stages.append(stage if choice is None else self._shorten(layer, step, choice, arguments))
        hidden, stage = step.hidden, self.stages[layer + 1]
        if choice is not None:
            hidden = _take(hidden, choice[0], 1)
        if stage.shortened:
            assert stage.rope is not None
            arguments["attention_mask"] = None if stage.mask is None else stage.mask.to(hidden.device)
            arguments["position_embeddings"] = tuple(part.to(hidden.device) for part in stage.rope)
            arguments["position_ids"] = stage.positions
        if self.looks_back:
            rope = arguments["position_embeddings"]
            self.previous = LayerInput(layer, module, hidden, rope, stage.tokens, *seen[1:], cache=cache_in(arguments))
        return hidden

    def _spend(self, flops: int) -> None:
        self.selection_flops += flops

    def _shorten(self, layer: int, step: LayerInput, choice: Choice, arguments: dict[str, Any]) -> Stage:
        """The stage after a drop."""
        before, (index, valid) = self.stages[layer], choice
        tokens = Tokens(
            before.tokens.columns.gather(1, index),
            valid,
            before.tokens.is_image.gather(1, index) & valid,
            None if before.tokens.labels is None else before.tokens.labels.gather(1, index).masked_fill(~valid, -100),
        )
        kernel = self.anatomy.language.config._attn_implementation
        mask = causal_mask(kernel, valid, valid.shape[1], step.hidden.dtype)
        if not self.renumber(layer):
            rope = (_take(step.rope[0], index, -2), _take(step.rope[1], index, -2))
            return Stage(tokens, True, rope, mask, None, before.shift)
        if self.last_position is None:
            self.last_position = _last(arguments["position_ids"], before.tokens.valid)
        positions = (valid.cumsum(1) - 1).clamp(min=0).to(step.hidden.device)
        shift = self.last_position.to(positions.device) - positions.amax(1)
        return Stage(tokens, True, self.anatomy.language.rotary_emb(step.hidden, positions), mask, positions, shift)

    @property
    def processed(self) -> list[Stage]:
        """The sequence that each decoder layer processed."""
        return self.stages[1:]

    def reduced(self) -> ReducedPrompt | None:
        """What later tokens need to know; None when nothing was dropped at all."""
        if not self.stages[-1].shortened:
            return None
        valid = [stage.tokens.valid if stage.shortened else None for stage in self.processed]
        return ReducedPrompt(self.stages[0].tokens.valid.shape[1], valid, [stage.shift for stage in self.processed])


def _survivors(tokens: Tokens, keep: Keep) -> Choice | None:
    """All valid text and the chosen image tokens in order, padded on the side of the sequence; None if nobody drops."""
    stays = tokens.valid.clone()
    for sample, places in enumerate(keep):
        if places is not None:
            stays[sample] &= ~tokens.is_image[sample]
            stays[sample, places] = True
    if torch.equal(stays, tokens.valid):
        return None
    counts, filled = stays.sum(1), tokens.valid.any(1)  # a row of padding alone may stay one
    length = int(counts.max())
    if bool(((counts == 0) & filled).any()):
        raise ValueError("a prompt of image tokens alone would lose all of them; add text to it or keep more tokens")
    slots = torch.arange(length, device=stays.device)
    if bool((tokens.valid[:, -1] | ~filled).all()):  # padded on the left, or not at all
        index, valid = stays.int().sort(stable=True, dim=1).indices[:, -length:], slots >= length - counts[:, None]
    else:
        index, valid = (~stays).int().sort(stable=True, dim=1).indices[:, :length], slots < counts[:, None]
    return index.masked_fill(~valid, 0), valid


def _take(x: Tensor, index: Int[Tensor, "b k"], dim: int) -> Tensor:
    """Rows of x along ``dim`` (the sequence), per sample; x is (b, l, d) or (…, 1 or b, l, d)."""
    index = index.to(x.device)
    if dim == 1:
        return x[torch.arange(len(index), device=x.device)[:, None], index]
    return x.take_along_dim(index.view(*(1,) * (x.ndim - 3), *index.shape, 1), dim)


def _last(positions: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Int[Tensor, " b"]:
    """Position of each sample's last valid token."""
    places = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    last = places.masked_fill(~valid, 0).amax(1, keepdim=True)
    return positions.expand_as(valid).gather(1, last)[:, 0]
