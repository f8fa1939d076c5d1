"""What decoding touches of transformers: the anatomy of its vision-language models, their caches and positions.

Everything here works on transformers 5.3 to 5.24, where the cache changes its keyword from ``past_key_values`` to
``cache``. The model is used as it is: no attention kernel is exchanged and nothing stays on it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

REDUCERS = "foveal.compress"
"""Hooks defined in this package shorten the sequence of the pass that they see."""
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
"""Inputs of models with several position axes (Qwen2-VL) on which positions depend."""

BESIDE_PIXELS = {
    "llava_next": ("image_sizes",),
    "llava_onevision": ("image_sizes",),
    "qwen2_vl": ("image_grid_thw",),
    "qwen2_5_vl": ("image_grid_thw",),
}
"""By model type: what a processor must have said of the pictures, beside their pixels."""


def bare(model: Any) -> Any:
    """The model of transformers itself, looking through a PEFT wrapper, whose adapters sit inside it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def image_token(model: Any) -> int:
    """Id of the token that stands in the prompt for an image feature; ValueError for a model without one."""
    token = getattr(model.config, "image_token_id", None)
    if token is None:
        raise ValueError(
            f"model is a {type(model).__name__}, which has no image_token_id: the decoders here need a vision-language "
            "model whose prompt holds image tokens, such as LlavaForConditionalGeneration"
        )
    return int(token)


def check_has_images(model: Any, input_ids: Int[Tensor, "b t"]) -> None:
    """ValueError unless some prompt holds an image token."""
    token = image_token(model)
    if not bool((input_ids == token).any()):
        raise ValueError(
            f"input_ids holds no image token (id {token}): there is no image to listen to. Pass the processor's "
            "input_ids of a prompt with an image, or generate without this logits processor"
        )


def check_pictures(model: Any, inputs: dict[str, Any]) -> None:
    """ValueError where something is missing without which the model cannot encode its images."""
    needed = ("pixel_values", *BESIDE_PIXELS.get(model.config.model_type, ()))
    if missing := [name for name in needed if inputs.get(name) is None]:
        raise ValueError(
            f"{missing[0]}=None: {type(model).__name__} cannot encode images without it; pass what its processor "
            "returned"
        )


def image_features(model: Any, **inputs: Tensor | None) -> list[Float[Tensor, "n d"]]:
    """Projected features of each image (of each sample, for Idefics3), in the order in which prompts consume them."""
    given = {name: value for name, value in inputs.items() if value is not None}
    with set_aside(model):
        return list(_base(model).get_image_features(**given, return_dict=True).pooler_output)


# Passes ---------------------------------------------------------------------------------------------------------------


def new_cache(model: Any) -> DynamicCache:
    """An empty cache for one stream of tokens."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@torch.no_grad()
def next_logits(
    model: Any,
    inputs: dict[str, Tensor],
    mask: Int[Tensor, "r t"],
    positions: Int[Tensor, "*axes r n"],
    cache: DynamicCache,
) -> Float[Tensor, "r v"]:
    """One forward pass over the n tokens of ``inputs``, which go into ``cache``; float32 logits after the last one.

    Args:
        mask: of all t tokens: those in the cache and the new ones. Where nothing is padded the model gets none, so that
            SDPA stays on its causal kernel.
    """
    with set_aside(model):
        out = model(
            **inputs,
            attention_mask=None if bool(mask.all()) else mask,
            position_ids=positions,
            **{_cache_keyword(model): cache},
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
    return out.logits[:, -1].float()


def prompt_positions(
    model: Any, input_ids: Int[Tensor, "b t"] | None, mask: Int[Tensor, "b t"], inputs: dict[str, Tensor]
) -> Int[Tensor, "*axes b t"]:
    """Positions that skip the padding; for models with several axes 4 × (B, T): text, then time, height and width.

    Given explicitly, they also keep Qwen's models from noting the offset of this prompt as that of the main pass.
    """
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    base = _base(model)
    if not hasattr(base, "get_rope_index"):
        return text
    grids = {name: inputs[name] for name in GRIDS if inputs.get(name) is not None}
    axes = text.expand(3, *text.shape)
    if input_ids is not None and grids:
        kinds = (input_ids == image_token(model)).int()
        kinds = kinds.masked_fill(input_ids == getattr(model.config, "video_token_id", -1), 2)
        offered = {**grids, "mm_token_type_ids": kinds, "attention_mask": mask}
        accepted = inspect.signature(base.get_rope_index).parameters
        axes, _ = base.get_rope_index(input_ids, **{name: offered[name] for name in accepted if name in offered})
    return torch.cat([text[None], axes.to(text)])


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Inside, the model is itself, without the token reducers of `foveal.compress` that may be attached to it.

    A reducer keeps notes on the tokens of the pass it last saw: those of ``generate``, which a pass of ours must not
    overwrite.
    """
    base = _base(model)
    saved: list[tuple[Any, dict[Any, Any]]] = []
    places = [(module._forward_pre_hooks, module._forward_hooks) for module in model.modules()]
    for notes in (*(hooks for pair in places for hooks in pair), vars(model), vars(base)):
        if reducing := [name for name, value in notes.items() if callable(value) and _is_reducer(value)]:
            saved.append((notes, dict(notes)))
            for name in reducing:
                del notes[name]
    try:
        yield
    finally:
        for notes, before in saved:
            for name in before:  # in the old order, in which hooks run
                notes.pop(name, None)
            notes.update(before)


def _is_reducer(function: Callable[..., Any]) -> bool:
    """Is it code of `REDUCERS`? ``functools.wraps`` copies ``__module__``, so ask where it was defined."""
    function = getattr(function, "_torchdynamo_orig_callable", function)  # what torch.compiler.disable has wrapped
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    home = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
    return home.startswith(REDUCERS)


def _base(model: Any) -> Any:
    """The model without its head, which owns vision tower, projector and language model."""
    return getattr(bare(model), "model", model)


def _cache_keyword(model: Any) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


# Caches ---------------------------------------------------------------------------------------------------------------


def can_be_cut(cache: DynamicCache) -> bool:
    """Whether every layer keeps every token, as full attention does: only then can its tokens be removed or padded."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def join_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all caches in one, below each other; shorter ones are padded with zeros in front.

    Raises ValueError where layers forget tokens (sliding windows, linear attention).
    """
    first, *others = caches
    if not others:
        return first
    if not all(map(can_be_cut, caches)):
        raise ValueError("this model has layers that forget tokens: its branches need passes of their own")
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        longest = max(layer.keys.shape[-2] for layer in layers)
        for name in ("keys", "values"):
            padded = [F.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in (getattr(x, name) for x in layers)]
            setattr(layers[0], name, torch.cat(padded))
    return first
