"""The forward passes behind branches: all their rows in one cache that follows ``generate``."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from foveal.decode.base_models import can_be_cut, join_caches, new_cache, next_logits, prompt_positions

OWNED = {"cache", "past_key_values", "use_cache", "labels", "position_ids"}
"""Arguments of a forward pass that are the branch's own business."""


@dataclass(frozen=True, eq=False)
class Prefill:
    """What a branch reads instead of the B prompts: arguments of a forward pass, and the mask of its padding."""

    inputs: dict[str, Any]
    mask: Int[Tensor, "b t"]

    @classmethod
    def of(cls, model: Any, inputs: dict[str, Any]) -> "Prefill":
        """Checked inputs; those that are None are left out. ValueError for what is not a left-padded prefill."""
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"model is a {type(model).__name__}: an encoder-decoder model has no prompt to exchange")
        if wanted := _required(model):
            raise ValueError(f"model is a {type(model).__name__}: no branch goes on without {wanted}")
        inputs = {name: _moved(value, model.device) for name, value in inputs.items() if value is not None}
        if owned := OWNED & set(inputs):
            raise ValueError(f"inputs has {', '.join(sorted(owned))}: leave it out, the branch sees to it itself")
        mask = inputs.pop("attention_mask", None)
        prompts = [inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs]
        if len(prompts) != 1:
            raise ValueError(f"inputs has {', '.join(inputs) or 'nothing'}: it needs either input_ids or inputs_embeds")
        shape = tuple(prompts[0].shape)
        if len(shape) != (2 if "input_ids" in inputs else 3) or 0 in shape:
            raise ValueError(f"inputs has a prompt of shape {shape}: must be (B, T) or (B, T, D), none of them 0")
        mask = torch.ones(shape[:2], dtype=torch.long) if mask is None else mask
        if tuple(mask.shape) != shape[:2]:
            raise ValueError(f"attention_mask {tuple(mask.shape)} must have the shape of the prompts, {shape[:2]}")
        if not bool(mask[:, -1].all()):
            raise ValueError("attention_mask ends with 0: pad on the left (tokenizer.padding_side = 'left')")
        return cls(inputs, mask.long().to(model.device))

    @property
    def is_text(self) -> bool:
        """Does it need nothing but the language model?"""
        return set(self.inputs) <= {"input_ids", "inputs_embeds"}

    def embeddings(self, model: Any) -> Float[Tensor, "b t d"]:
        """Of a prefill of text."""
        ids = self.inputs.get("input_ids")
        return self.inputs["inputs_embeds"] if ids is None else model.get_input_embeddings()(ids)


@dataclass
class Rows:
    """R rows, one branch below the other: cache, mask of the prompts, their last positions, and the next logits."""

    cache: DynamicCache
    mask: Int[Tensor, "r t"]
    last: Int[Tensor, "*axes r 1"]
    logits: Float[Tensor, "r v"]


class Passes:
    """Branches that hear the same tokens.

    Nothing of a prefill is kept apart: when beams change places, rows of the cache do, and tokens that a new history
    does not share are cut off. Only a model whose layers forget tokens reads its prompt again then.
    """

    def __init__(self, model: Any, prefills: Sequence[Prefill], forwards: int = 0) -> None:
        if len(sizes := {len(prefill.mask) for prefill in prefills}) > 1:
            raise ValueError(f"branches of {sorted(sizes)} prompts cannot share their passes: give all the same batch")
        self.model, self.forwards = model, forwards
        self.prefills = sorted(prefills, key=lambda prefill: not prefill.is_text)
        self.reset()

    def reset(self) -> None:
        """Forget what was heard, free the cache."""
        self._rows: Rows | None = None
        self._ids: Any = None  # of the last call
        self._prompt = 0  # tokens of the main pass that are its prompt, not heard
        self._served: list[Prefill] = []

    @torch.no_grad()
    def logits(self, input_ids: Int[Tensor, "r t"], prefill: Prefill) -> Float[Tensor, "r v"]:
        """The next logits of one branch; another one that asks with the same tokens gets its rows of the same pass."""
        if self._rows is None or prefill in self._served or not torch.equal(self._ids, input_ids):
            rows, self._rows = self._rows, None  # a pass that breaks off leaves a cache that is no good
            self._rows = self._hear(rows, input_ids)
            self._ids, self._served = input_ids.clone(), []
        self._served.append(prefill)
        return self._rows.logits.chunk(len(self.prefills))[self.prefills.index(prefill)]

    def _hear(self, rows: Rows | None, ids: Int[Tensor, "r t"]) -> Rows:
        prompt, known = self._prompt, self._ids
        goes_on = known is not None and len(ids) == len(known) and ids.shape[1] > prompt
        if not goes_on or not (ids.shape[1] > known.shape[1] or torch.equal(ids[:, :prompt], known[:, :prompt])):
            return self._start(ids)
        old, new = known[:, prompt:], ids[:, prompt:]
        if rows is None:
            return self._say(self._start(ids[:, :prompt]), new, 0)
        if torch.equal(new[:, : old.shape[1]], old) and new.shape[1] > old.shape[1]:
            return self._say(rows, new, old.shape[1])
        parents, common = self._shared_history(old, new)
        if common < old.shape[1] and not can_be_cut(rows.cache):
            return self._say(self._start(ids[:, :prompt]), new, 0)
        rows.cache.batch_select_indices(parents)
        if common < old.shape[1]:
            rows.cache.crop(common - old.shape[1])  # negative: so many tokens less, in every release
        return self._say(rows, new, common)

    def _start(self, ids: Int[Tensor, "r t"]) -> Rows:
        """Read the prompts of all branches, those of text in one pass."""
        prompts = len(self.prefills[0].mask)
        if ids.ndim != 2 or len(ids) == 0 or len(ids) % prompts:
            raise ValueError(f"input_ids {tuple(ids.shape)} must be (R, T) with R a multiple of the {prompts} prompts")
        text = [prefill for prefill in self.prefills if prefill.is_text]
        groups = [group for group in (text, *([x] for x in self.prefills if not x.is_text)) if group]
        self.forwards += len(groups)
        rows = _below_each_other([_read(self.model, group, len(ids) // prompts) for group in groups])
        self._prompt = ids.shape[1]
        return rows

    def _say(self, rows: Rows, new: Int[Tensor, "r n"], heard: int) -> Rows:
        """Feed the tokens after the first ``heard`` ones to all branches."""
        said = new[:, heard:].repeat(len(self.prefills), 1).to(rows.mask.device)
        places = torch.arange(heard, new.shape[1], device=said.device) + 1
        mask = F.pad(rows.mask, (0, new.shape[1]), value=1)
        self.forwards += 1
        rows.logits = next_logits(self.model, {"input_ids": said}, mask, rows.last + places, rows.cache)
        return rows

    def _shared_history(self, old: Int[Tensor, "r m"], new: Int[Tensor, "r n"]) -> tuple[Int[Tensor, " rows"], int]:
        """For each new row the old one of the same prompt that it continues, for all branches; the tokens kept."""
        prompts = len(self.prefills[0].mask)
        old, new = (x.unflatten(0, (prompts, -1)) for x in (old, new))
        length = min(old.shape[-1], new.shape[-1] - 1)  # one token at least is said anew: its logits are asked for
        same = (new[:, :, None, :length] == old[:, None, :, :length]).long().cumprod(-1).sum(-1)
        longest, parents = same.max(-1)
        parents = (parents + torch.arange(prompts, device=old.device)[:, None] * old.shape[1]).flatten()
        offsets = torch.arange(len(self.prefills), device=old.device)[:, None] * len(parents)
        return (offsets + parents).flatten(), int(longest.min())


def _read(model: Any, prefills: list[Prefill], times: int) -> Rows:
    """One pass over prompts, whose rows are then repeated ``times`` times. Several prefills must be text."""
    longest = max(prefill.mask.shape[1] for prefill in prefills)
    mask = torch.cat([_pad_front(prefill.mask, longest) for prefill in prefills])
    inputs = prefills[0].inputs
    if len(prefills) > 1:
        inputs = {"inputs_embeds": torch.cat([_pad_front(x.embeddings(model), longest) for x in prefills])}
    positions, cache = prompt_positions(model, inputs.get("input_ids"), mask, inputs), new_cache(model)
    logits = next_logits(model, inputs, mask, positions, cache)
    if times > 1:
        cache.batch_repeat_interleave(times)
    mask, logits = (x.repeat_interleave(times, 0) for x in (mask, logits))
    return Rows(cache, mask, positions[..., -1:].repeat_interleave(times, -2), logits)


def _below_each_other(parts: list[Rows]) -> Rows:
    longest = max(part.mask.shape[1] for part in parts)
    return Rows(
        join_caches([part.cache for part in parts]),
        torch.cat([_pad_front(part.mask, longest) for part in parts]),
        torch.cat([part.last for part in parts], -2),
        torch.cat([part.logits for part in parts]),
    )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _pad_front(x: Tensor, length: int) -> Tensor:
    """(B, T, …) with zeros in front of T."""
    return torch.cat([x.new_zeros(len(x), length - x.shape[1], *x.shape[2:]), x], 1)


def _required(model: Any) -> str:
    """Arguments without which the model cannot go on, such as the pictures of a model with a Q-Former."""
    parameters = inspect.signature(model.forward).parameters.values()
    return ", ".join(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
