"""A CLIP in the place of AGLA's BLIP matcher: where its class token looks for what the text says.

BLIP's cross-attention, whose gradient the paper takes, has no counterpart in CLIP. Its nearest relative is the class
token's attention to the patches in the last vision block, weighed by the gradient of the cosine with the text:

    cam = mean over heads of A[CLS] ⊙ max(∂ cos / ∂A[CLS], 0)

No fusion layers to load, at the price of a coarser map: CLIP compares whole pictures with whole texts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.decode.agla import _tracked_from


class ClipMatcher:
    """Called as `BlipMatcher` is, with the tensors of the CLIP's own processor.

    Args:
        model: a `transformers.CLIPModel` that was given eager attention: ``model.set_attn_implementation("eager")``.

    Raises ValueError for a model that is none, or whose attention cannot be read.
    """

    def __init__(self, model: Any) -> None:
        parts = ("vision_model", "text_model", "visual_projection", "text_projection")
        if not all(hasattr(model, part) for part in parts):
            raise ValueError(f"model is a {type(model).__name__}: must be a CLIPModel")
        kernel = model.config.vision_config._attn_implementation
        if kernel != "eager":
            raise ValueError(f'model computes attention by {kernel!r}: call model.set_attn_implementation("eager")')
        self.model = model

    def __call__(
        self, pixel_values: Float[Tensor, "b 3 height width"], input_ids: Int[Tensor, "b t"], attention_mask: Tensor
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Map of the patches and cosine of each image with the text next to it.

        Works where gradients are switched off, and leaves none behind. Raises ValueError unless there is a text for
        each image.
        """
        if len(pixel_values) != len(input_ids) or input_ids.shape != attention_mask.shape:
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)}, input_ids {tuple(input_ids.shape)} and attention_mask "
                f"{tuple(attention_mask.shape)} must be B images with B texts: repeat the text for several images"
            )
        model = self.model
        with torch.inference_mode(False), torch.enable_grad():
            ids, mask = input_ids.clone(), attention_mask.clone()  # inference tensors cannot take part in a gradient
            with torch.no_grad():
                text = model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)
            with _tracked_from(model.vision_model.encoder.layers[-1].self_attn) as caught:
                image = model.visual_projection(model.vision_model(pixel_values=pixel_values.clone()).pooler_output)
            similarity = F.cosine_similarity(image.float(), text.float())
            (gradient,) = torch.autograd.grad(similarity.sum(), caught)
        cam = (caught[0].detach() * gradient.clamp(min=0))[:, :, 0, 1:].mean(1)
        columns = pixel_values.shape[-1] // model.config.vision_config.patch_size
        return cam.float().unflatten(-1, (-1, columns)), similarity.detach()
