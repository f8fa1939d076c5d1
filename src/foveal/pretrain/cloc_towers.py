"""Towers of transformers as CLOC's objective takes them: patch tokens with a pooled vector, and one vector per text."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn


class PatchTower(nn.Module):
    """`CLIPVisionModel`, `SiglipVisionModel` or another with ``last_hidden_state`` and ``pooler_output``.

    Class and register tokens are dropped from the tokens: only what has a place in the picture is prompted.
    """

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """Tokens and pooled vector. ValueError for a model that has no pooled one."""
        vision: Any = self.vision
        output = vision(images)
        if getattr(output, "pooler_output", None) is None:
            raise ValueError(f"vision is a {type(vision).__name__}, which gives no pooler_output")
        patch = vision.config.patch_size
        patches = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        return output.last_hidden_state[:, -patches:], output.pooler_output.flatten(1)


class TextTower(nn.Module):
    """`CLIPTextModelWithProjection` (its ``text_embeds``), or a text model with ``pooler_output``."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, ids: Int[Tensor, "n l"], mask: Tensor) -> Float[Tensor, "n e"]:
        """One vector for each text. ValueError for a model that gives none."""
        text: Any = self.text
        output = text(input_ids=ids, attention_mask=mask)
        for name in ("text_embeds", "pooler_output"):
            features: Tensor | None = getattr(output, name, None)
            if features is not None:
                return features
        raise ValueError(f"text is a {type(text).__name__}, which gives neither text_embeds nor pooler_output")
