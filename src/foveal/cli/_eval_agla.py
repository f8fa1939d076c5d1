"""`foveal eval --decode agla`: the model looks again at what of the picture the question is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, BlipForImageTextRetrieval, CLIPModel

from foveal.decode.agla import AglaLogitsProcessor, BlipMatcher, augmented_view
from foveal.decode.agla_clip import ClipMatcher
from foveal.decode.base import ContrastProcessor
from foveal.evaluate.models import VisionLanguage
from foveal.evaluate.models.files import find_folder
from foveal.zoo.quiet import quiet_loading


class SecondLook:
    """Makes AGLA's processor for a batch of prompts.

    ``name``: of the model that says how picture and question match, a CLIP or a BLIP with a matching head.

    Raises ValueError for a model that is neither; when called, for prompts without exactly one whole picture each.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            folder = find_folder(name)
        except ValueError as error:
            raise ValueError(str(error).replace("model=", "matcher=", 1)) from error
        try:
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"matcher={name!r} is none that this transformers knows: {reason}") from error
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
        with quiet_loading():
            if kind == "clip":
                clip = CLIPModel.from_pretrained(folder, attn_implementation="eager", **options)
                self.match: ClipMatcher | BlipMatcher = ClipMatcher(clip.eval().to(device))
            elif kind == "blip":
                blip = BlipForImageTextRetrieval.from_pretrained(folder, **options)
                self.match = BlipMatcher(blip.eval().to(device))
            else:
                raise ValueError(f"matcher={name!r} is a {kind!r} model: give a CLIP, or a BLIP with a matching head")
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.device = device

    def __call__(self, answering: VisionLanguage, inputs: Mapping[str, Any]) -> ContrastProcessor:
        given = inputs["pixel_values"]
        if given.ndim != 4 or len(given) != len(inputs["input_ids"]):
            raise ValueError(
                f"decode='agla': {type(answering.model).__name__} takes {tuple(given.shape)} for "
                f"{len(inputs['input_ids'])} prompts; here a prompt must hold one picture, seen whole, as by LLaVA-1.5"
            )
        images: Any = answering.processor.image_processor
        mean, std = (torch.tensor(value).view(3, 1, 1).to(given) for value in (images.image_mean, images.image_std))
        pictures = (given * std + mean).float().clamp(0, 1)
        questions = answering.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        read = self.processor(
            text=[question.strip() for question in questions],
            images=[(255 * picture).round().byte().permute(1, 2, 0).cpu().numpy() for picture in pictures],
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        cams, cosines = self.match(read["pixel_values"], read["input_ids"], read["attention_mask"])
        views = [augmented_view(*one[:2], float(one[2]))[0] for one in zip(pictures, cams, cosines, strict=True)]
        again = (torch.stack(views).to(given) - mean) / std
        prompts = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_sizes") if name in inputs}
        return AglaLogitsProcessor(answering.model, pixel_values=again, **prompts)
