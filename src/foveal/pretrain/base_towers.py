"""What objectives read from two towers, be they models of Hugging Face or any module that returns plain tensors."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def vision_tokens(vision: nn.Module, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
    """All tokens of an image tower after its final norm.

    Args:
        vision: `ViTModel`, `CLIPVisionModel` or any other with a ``last_hidden_state``; or a module that returns
            tokens. CLIP's is the one ``last_hidden_state`` that its final norm has not seen yet.

    Raises ValueError for a module that returns neither.
    """
    output: Any = vision(images)
    tokens = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(output).__name__
        raise ValueError(f"vision returned {found}: must be tokens (B, N, D), or an output with last_hidden_state")
    config = getattr(vision, "config", None)
    if tokens is not output and getattr(config, "model_type", None) == "clip_vision_model":
        model: Any = getattr(vision, "vision_model", vision)  # transformers before 5.6 nests it
        tokens = model.post_layernorm(tokens)
    return tokens


def text_features(
    text: nn.Module, ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"]
) -> Float[Tensor, "b e"]:
    """One vector for each text, not normalised.

    Args:
        text: called as ``text(ids, mask)``: `CLIPTextModelWithProjection` (its ``text_embeds``), `CLIPTextModel` (its
            ``pooler_output``) or a module that returns vectors.

    Raises ValueError for a module that returns none of these.
    """
    output: Any = text(ids, mask)
    features = text_vectors(output)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(ids):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(output).__name__
        raise ValueError(f"text returned {found}: must be (B, E), or an output with text_embeds or pooler_output")
    return features


def text_vectors(output: Any) -> Any:
    """The vectors in what a text tower returned: itself if it is a tensor, else ``text_embeds`` or ``pooler_output``.

    None where there are none of these.
    """
    if isinstance(output, Tensor):
        return output
    found = (getattr(output, name, None) for name in ("text_embeds", "pooler_output"))
    return next((vectors for vectors in found if vectors is not None), None)
