"""A dual encoder (CLIP, SigLIP and their like): pictures and texts as rows of one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


class DualEncoder:
    """Features in float32 on the CPU, not normalised, computed in batches without gradients.

    Args:
        model: with ``get_image_features`` and ``get_text_features``, in evaluation mode.
        processor: its ``image_processor`` and ``tokenizer``.
        batch_size: most pictures or texts at once.

    Attributes:
        longest: the most tokens of a text.
    """

    kind: Literal["dual encoder"] = "dual encoder"

    def __init__(self, model: Any, processor: Any, batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        text = getattr(model.config, "text_config", model.config)
        self.longest: int = getattr(text, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self._words = {"truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        # SigLIP reads its last position and was trained on full-length texts only
        self._words["padding"] = "max_length" if model.config.model_type.startswith("siglip") else True

    def image_features(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "n d"]:
        """One row for each RGB picture of any size."""
        return self._batched(images, self._encode_images)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """One row for each text; what is longer than the model's longest text is cut."""
        return self._batched(texts, self._encode_texts)

    def tokens(self, texts: Sequence[str]) -> Any:
        """Ids and mask as the model wants them, on its device."""
        return self.tokenizer(list(texts), **self._words).to(self.model.device)

    def _encode_images(self, images: Sequence[Any]) -> Any:
        pictures = [Image.fromarray(image) for image in images]  # arrays of 3 × 3 pixels leave no doubt of their axes
        pixels = self.image_processor(images=pictures, return_tensors="pt")
        return self.model.get_image_features(**pixels.to(self.model.device, self.model.dtype))

    def _encode_texts(self, texts: Sequence[str]) -> Any:
        return self.model.get_text_features(**self.tokens(texts))

    @torch.no_grad()
    def _batched(self, inputs: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Float[Tensor, "n d"]:
        if not len(inputs):
            raise ValueError("nothing to encode: give at least one picture or text")
        rows = []
        for start in range(0, len(inputs), self.batch_size):
            output = encode(inputs[start : start + self.batch_size])
            rows.append((output if isinstance(output, Tensor) else output.pooler_output).float().cpu())
        features = torch.cat(rows)
        if not bool(features.isfinite().all()):
            raise ValueError(f"{type(self.model).__name__} gave features that are not finite; try --dtype float32")
        return features
