"""Where each supported Hugging Face class keeps its parts: the only file of the stage that knows the classes."""

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
METHODS = {
    "PyramidDrop": "decoder",
    "LayerwiseKeep": "decoder",
    "FoPru": "image",
    "AIM": "image",
}
"""The plug-ins of this stage and what they read: the decoder alone, or the features of every single image too."""


@dataclass(frozen=True)
class Family:
    """What the checkpoints of one ``model_type`` have in common."""

    language: str = "language_model"
    vision: str = "vision_tower"
    features: str = "image"
    """What one entry of ``get_image_features(...).pooler_output`` covers: an image, a tile, or a whole sample."""
    multi_axis: bool = False
    """Rotary positions of time, height and width, which no renumbering of a shorter sequence can keep."""


FAMILIES = {
    "llava": Family(),
    "llava_next": Family(),
    "llava_onevision": Family(),
    "internvl": Family(features="tile"),
    "qwen2_vl": Family(vision="visual", multi_axis=True),
    "qwen2_5_vl": Family(vision="visual", multi_axis=True),
    "idefics3": Family(language="text_model", vision="vision_model", features="sample"),
    "smolvlm": Family(language="text_model", vision="vision_model", features="sample"),
}


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model that the runtime hooks or reads."""

    model: Any
    """The ``…ForConditionalGeneration``."""
    base: Any
    """``model.model``: vision and decoder without the head."""
    language: Any
    """The decoder: ``.layers``, ``.rotary_emb``, ``.config``."""
    vision: Any
    """The vision tower."""
    kind: str
    """``config.model_type``."""
    features: str
    """See `Family`."""
    multi_axis: bool
    """See `Family`."""
    placeholders: tuple[int, ...]
    """Ids in ``input_ids`` whose columns hold image or video tokens."""

    @property
    def layers(self) -> list[Any]:
        """The decoder layers, in order."""
        return list(self.language.layers)

    def refuse(self, method: str, reason: str) -> NoReturn:
        """Raise the ValueError that says why ``method`` cannot work on this class, and which of ours can."""
        fitting = [name for name, needs in METHODS.items() if needs == "decoder" or self.features == "image"]
        others = [name for name in fitting if name != method]
        if self.multi_axis:
            others = [f'{name}(positions="original")' if METHODS[name] == "decoder" else name for name in others]
        raise ValueError(f"{method} cannot work on {type(self.model).__name__}: {reason}; here take {_or(others)}")


def find(model: Any) -> Anatomy:
    """The parts of ``model``; a PEFT wrapper is looked through.

    Raises ValueError for a class, attention kernel or layer type that the runtime does not know, and for a model that
    was compiled as a whole.
    """
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not hasattr(model, "lm_head"):
        raise ValueError(
            f"model={type(model).__name__} ({kind}) is not supported; give the …ForConditionalGeneration of "
            f"{_or(list(FAMILIES))}"
        )
    family, base = FAMILIES[kind], model.model
    language = getattr(base, family.language)
    _check_not_compiled(model, base, language)
    _check_decoder(language)
    ids = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
    placeholders = tuple(token for token in ids if token is not None)
    vision = getattr(base, family.vision)
    return Anatomy(model, base, language, vision, kind, family.features, family.multi_axis, placeholders)


def _check_not_compiled(*parts: nn.Module) -> None:
    """A graph of the whole decoder has one length inside: its layers cannot be shortened."""
    for part in parts:
        compiled = getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_torchdynamo_orig_callable")
        if compiled or hasattr(part.forward, "_torchdynamo_orig_callable"):
            raise ValueError(
                f"model: {type(part).__name__} is compiled as a whole; compile its decoder layers instead, e.g. "
                "`for layer in model.get_decoder().layers: layer.compile()`"
            )


def _check_decoder(language: Any) -> None:
    """The kernel, the reach and the projections of the decoder layers."""
    config = language.config
    kernel = config._attn_implementation
    if kernel not in KERNELS:
        raise ValueError(f"attn_implementation={kernel!r} has masks of its own; load the model with {_or(KERNELS)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None) is not None:
        found = ", ".join(sorted(kinds)) or f"sliding_window={config.sliding_window}"
        raise ValueError(f"the decoder has layers of limited reach ({found}); only full attention can be shortened")
    for number, layer in enumerate(language.layers):
        attention = getattr(layer, "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj")) or not hasattr(layer, "input_layernorm"):
            raise ValueError(
                f"decoder layer {number} ({type(layer).__name__}) has no input_layernorm with self_attn.q_proj and "
                "k_proj; take a Llama, Mistral or Qwen style language model"
            )


def _or(names: Any) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
