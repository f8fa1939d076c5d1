"""What a reduced model must compute, written slowly: one sample, no padding, no hooks, no cache, a loop of layers."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tiny import IMAGE


@dataclass
class At:
    """The prompt as it enters one layer."""

    number: int
    layer: Any
    hidden: Tensor
    rope: tuple[Tensor, Tensor]
    columns: list[int]
    is_image: list[bool]
    n_image: int

    @property
    def images(self) -> list[int]:
        return [place for place, flag in enumerate(self.is_image) if flag]

    @property
    def texts(self) -> list[int]:
        return [place for place, flag in enumerate(self.is_image) if not flag]


Choose = Callable[[At], list[int]]
"""Places of the prompt that stay."""


class Stop(Exception):
    pass


def decoder_input(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Embeddings (images filled in) and positions that the decoder would get."""
    language, caught = model.get_decoder(), {}

    def catch(module, args, kwargs):
        caught.update(kwargs)
        raise Stop

    handle = language.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**inputs)
    except Stop:
        pass
    finally:
        handle.remove()
    return caught


@torch.no_grad()
def run(
    model: Any,
    inputs: dict[str, Any],
    prompt: int,
    choose: Choose,
    renumber: Callable[[int], bool],
    everywhere: bool = False,
) -> tuple[Tensor, list[list[int]]]:
    """Logits from the last prompt token on (or ``everywhere``), and the prompt's columns that every layer processed.

    ``inputs`` hold one unpadded sample: a prompt of that length and later tokens, which are never dropped.
    """
    language, caught = model.get_decoder(), decoder_input(model, inputs)
    hidden = caught["inputs_embeds"]
    length = hidden.shape[1]
    positions = caught.get("position_ids")
    if positions is None:
        positions = torch.arange(length)[None]
    cos, sin = language.rotary_emb(hidden, positions[-3:] if positions.ndim == 3 else positions)
    columns = list(range(length))
    is_image = [token == IMAGE for token in inputs["input_ids"][0].tolist()]
    n_image, kept = sum(is_image[:prompt]), []
    for number, layer in enumerate(language.layers):
        start = [place for place, column in enumerate(columns) if column < prompt]
        flags = [is_image[columns[place]] for place in start]
        chosen = choose(At(number, layer, hidden[:, : len(start)], (cos, sin), columns[: len(start)], flags, n_image))
        if len(chosen) < len(start):
            places = [*chosen, *range(len(start), len(columns))]
            hidden, columns = hidden[:, places], [columns[place] for place in places]
            if renumber(number):
                cos, sin = language.rotary_emb(hidden, torch.arange(len(columns))[None])
            else:
                cos, sin = cos[..., places, :], sin[..., places, :]
        kept.append([column for column in columns if column < prompt])
        mask = torch.full((len(columns), len(columns)), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=(cos, sin))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    logits = model.lm_head(language.norm(hidden))[0]
    return logits if everywhere else logits[len(logits) - (length - prompt) - 1 :], kept


def attention(layer: Any, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """(heads, L, L) causal attention of one layer on (1, L, D), by its module's own rotary function."""
    module, own = layer.self_attn, inspect.getmodule(type(layer.self_attn))
    length = hidden.shape[1]
    x = layer.input_layernorm(hidden)
    query = module.q_proj(x).view(1, length, -1, module.head_dim).transpose(1, 2)
    key = module.k_proj(x).view(1, length, -1, module.head_dim).transpose(1, 2)
    cos, sin = (part[..., :length, :] for part in rope)
    if cos.ndim == 4:  # the axes of mRoPE, before transformers folded them early
        sections = module.config.rope_parameters["mrope_section"]
        query, key = own.apply_multimodal_rotary_pos_emb(query, key, cos, sin, sections)
    else:
        query, key = own.apply_rotary_pos_emb(query, key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = (query @ key.transpose(2, 3))[0] / module.head_dim**0.5
    return logits.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def as_kept(kept: list[Tensor]) -> Choose:
    """What a reducer says that it kept, by layer."""
    return lambda at: [at.columns.index(column) for column in kept[at.number].tolist()]
