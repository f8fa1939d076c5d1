"""nano-clip in the place of AGLA's matcher: which patches of a picture fit a text, and how well all of it does.

BLIP, which the paper takes, has cross-attention whose gradient tells the patches. nano-clip has none, but it is
trained to match single regions with phrases, so that each patch can be compared with the text itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal import zoo


class PatchMatcher:
    """Called as `foveal.decode.BlipMatcher` is, with the tensors of nano-clip's processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls) -> PatchMatcher:
        """With the shipped nano-clip."""
        nano = zoo.load("nano-clip")
        return cls(nano.model, nano.processor)

    @torch.no_grad()
    def __call__(
        self, pixel_values: Float[Tensor, "b 3 height width"], input_ids: Int[Tensor, "b t"], attention_mask: Tensor
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Cosine of every patch, and of the whole picture, with the text next to it."""
        tower = self.model.vision_model
        hidden = tower(pixel_values=pixel_values).last_hidden_state
        seen = self.model.visual_projection(tower.post_layernorm(hidden))
        told = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        cosine = F.cosine_similarity(seen, told[:, None], dim=-1)
        columns = pixel_values.shape[-1] // self.model.config.vision_config.patch_size
        return cosine[:, 1:].unflatten(1, (-1, columns)), cosine[:, 0]
