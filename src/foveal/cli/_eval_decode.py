"""`foveal eval --decode`: one of our decoders between a vision–language model and its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from foveal.decode.base import ContrastProcessor
from foveal.decode.damro import DamroLogitsProcessor
from foveal.decode.debias import DebiasLogitsProcessor
from foveal.evaluate.models import Opened, VisionLanguage

OUTLIERS = 10
"""Of an image, as in DAMRO's paper; a tiny model has fewer tokens."""


def with_decoder(opened: Opened, decoder: str, matcher: str | None) -> Opened:
    """The model, answering with the decoder at its paper's settings; kept answers without it are not mixed up with it.

    ``matcher``: see `foveal.cli._eval_agla.SecondLook`.

    Raises ValueError for a model that is asked nothing, and for a matcher that is missing, not needed, or no matcher. A
    model that the decoder does not fit says so when it is asked.
    """
    if (matcher is None) == (decoder == "agla"):
        raise ValueError(
            f"decode={decoder!r}, matcher={matcher!r}: agla needs a CLIP or BLIP as matcher, no other does"
        )
    answering = opened.model
    if not isinstance(answering, VisionLanguage):
        raise ValueError(f"decode={decoder!r}: is for vision-language models, {opened.name} is a {opened.kind} one")
    make: Callable[..., ContrastProcessor]
    if matcher is None:
        make, named = _MAKE[decoder], {"decode": decoder}
    else:
        from foveal.cli._eval_agla import SecondLook

        make, named = SecondLook(matcher, answering.model.device), {"decode": decoder, "matcher": matcher}
    answering.options = partial(_options, answering, make)
    return replace(opened, settings={**opened.settings, **named})


def _options(
    answering: VisionLanguage, make: Callable[..., ContrastProcessor], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    return {"logits_processor": [make(answering, inputs)]}


def _debias(answering: VisionLanguage, inputs: Mapping[str, Any]) -> ContrastProcessor:
    unknown, padding = answering.tokenizer.unk_token_id, answering.tokenizer.pad_token_id
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if unknown is None:  # nothing can stand for the picture
        return DebiasLogitsProcessor(answering.model, **prompts, mode="none", pad_token_id=padding)
    return DebiasLogitsProcessor(answering.model, **prompts, unk_token_id=unknown, pad_token_id=padding)


def _damro(answering: VisionLanguage, inputs: Mapping[str, Any]) -> ContrastProcessor:
    names = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
    given = {name: inputs[name] for name in names if name in inputs}
    fewest = getattr(answering.model.config, "image_seq_length", OUTLIERS)
    return DamroLogitsProcessor(answering.model, **given, top_k=min(OUTLIERS, fewest))


_MAKE = {"debias": _debias, "damro": _damro}
