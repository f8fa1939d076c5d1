"""AGLA: add to an answer what the model says when it sees only the part of the image that the question is about.

An image-text matching model scores image and question; the gradient of that score tells which patches it rests on. The
rest of the image is blackened, the more of it the better the two match. The logits of this view are added to those of
the whole image:

    cam = mean over words and heads of C ⊙ max(∂match/∂C, 0)        C: cross-attention of words to patches
    ρ = min(1 − s/2, 1 − 10⁻⁵), at least 0                          s: cosine of image and question
    view = image where the smoothed cam is at least its value at rank ⌊HWρ⌋, else 0
    ℓ' = ℓ + α · ℓ_view                                             tokens with ℓ < max ℓ + log β get −∞

`BlipMatcher` makes cam and s, `augmented_view` the view, on pixels in [0, 1] and before the model's own normalisation.
The gradient is taken of one text layer's probabilities alone: nothing before it is tracked, no parameter gets any.

Wenbin An, Feng Tian, Sicong Leng, et al.: Mitigating Object Hallucinations in Large Vision-Language Models with
Assembly of Global and Local Attention. CVPR 2025, arXiv 2406.12718.

Departures: the map is enlarged by torch's bicubic interpolation (the authors' code by a cubic spline), to the image's
own size and shape.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from foveal.decode.base import (
    ContrastBranch,
    ContrastProcessor,
    check_alpha,
    check_beta,
    check_has_images,
    check_pictures,
    plausible_contrast,
)

# What the question is about -------------------------------------------------------------------------------------------


def matching_gradcam(
    attention: Float[Tensor, "b h t n"], gradient: Float[Tensor, "b h t n"], token_mask: Int[Tensor, "b t"]
) -> Float[Tensor, "b n"]:
    """How much the match of image and text rests on each patch.

    Args:
        attention, gradient: cross-attention probabilities of T tokens to N patches (without the image's CLS token), and
            the gradient of the match score by them.
        token_mask: 1 for tokens, 0 for padding. The first and the last token ([CLS], [SEP]) are no words.

    Raises ValueError for shapes that do not fit, a text without a word, and what is not finite.
    """
    if attention.ndim != 4 or attention.shape != gradient.shape:
        raise ValueError(
            f"attention {tuple(attention.shape)} and gradient {tuple(gradient.shape)} must be (B, H, T, N)"
        )
    if token_mask.shape != (attention.shape[0], attention.shape[2]):
        raise ValueError(f"token_mask {tuple(token_mask.shape)} must be (B, T) of attention {tuple(attention.shape)}")
    counted = (token_mask > 0).long().cumsum(-1)
    if bool((counted[:, -1] < 3).any()):
        raise ValueError(
            f"token_mask has a row of {int(counted[:, -1].min())} tokens: needs 3, a word in [CLS] … [SEP]"
        )
    words = (token_mask > 0) & (counted > 1) & (counted < counted[:, -1:])
    maps = (attention * gradient.clamp(min=0)).mean(1) * words[..., None]
    if not bool(maps.isfinite().all()):
        raise ValueError("attention or gradient hold NaN or infinity: run the matcher in float32")
    return maps.sum(1) / words.sum(-1, keepdim=True)


def smooth_map(
    cam: Float[Tensor, "h w"], size: tuple[int, int], sigma_ratio: float = 0.02
) -> Float[Tensor, "height width"]:
    """The map at the size of the image (height, width), blurred, in [0, 1]; zeros where it is constant.

    Args:
        sigma_ratio: σ of the Gaussian as a share of the longer side, at least 0; borders are mirrored.

    Raises ValueError for a map that is not 2-D or not finite, an empty size and a negative ``sigma_ratio``.
    """
    if cam.ndim != 2 or 0 in cam.shape or not bool(cam.isfinite().all()):
        raise ValueError(f"cam {tuple(cam.shape)} must be a finite map (h, w), one for each image")
    height, width = (int(side) for side in size)
    if min(height, width) < 1 or not 0 <= sigma_ratio < math.inf:
        raise ValueError(f"size={(height, width)}, sigma_ratio={sigma_ratio}: needs pixels, and a ratio of at least 0")
    large = F.interpolate(
        _spread(cam.detach().double())[None, None], (height, width), mode="bicubic", align_corners=False
    )
    sigma = sigma_ratio * max(height, width)
    blurred = gaussian_filter(large[0, 0].cpu().numpy(), sigma, mode="reflect", truncate=4.0)
    return _spread(torch.from_numpy(blurred)).to(cam.device, torch.promote_types(cam.dtype, torch.float32))


def _spread(x: Tensor) -> Tensor:
    """From 0 to 1; zeros for what is constant, but for rounding."""
    low, high = x.min(), x.max()
    if float(high - low) <= 1e-12 * float(x.abs().max()):  # a confident matcher has tiny gradients: no absolute bound
        return torch.zeros_like(x)
    return (x - low) / (high - low)


def keep_ratio(similarity: float) -> float:
    """Share of the pixels that stay, in [0, 1): the better image and question match, the fewer.

    Args:
        similarity: cosine of image and question, not their match probability.
    """
    similarity = float(similarity)
    if math.isnan(similarity):
        raise ValueError("similarity is NaN: check the matcher's features")
    return max(0.0, min(1 - similarity / 2, 1 - 1e-5))


def adaptive_mask(saliency: Float[Tensor, "h w"], ratio: float) -> Bool[Tensor, "h w"]:
    """The ⌊HW · ``ratio``⌋ + 1 most salient pixels, more where values are equal. ValueError unless 0 ≤ ratio < 1."""
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}: must be in [0, 1); see keep_ratio")
    if saliency.ndim != 2 or saliency.numel() == 0 or bool(saliency.isnan().any()):
        raise ValueError(f"saliency {tuple(saliency.shape)} must be a map (H, W) without NaN")
    falling = saliency.flatten().sort(descending=True).values
    return saliency >= falling[int(saliency.numel() * ratio)]


def augmented_view(
    image: Float[Tensor, "3 height width"], cam: Float[Tensor, "h w"], similarity: float, sigma_ratio: float = 0.02
) -> tuple[Float[Tensor, "3 height width"], Bool[Tensor, "height width"]]:
    """The image with everything black that the question is not about, and the mask of what stays.

    Args:
        image: pixels in [0, 1], before any normalisation; give the view to the model's image processor.
        cam, similarity: of this image, as a matcher returns them.

    Raises ValueError for an image that is not (3, H, W) in [0, 1], and as `smooth_map` does.
    """
    if image.ndim != 3 or len(image) != 3 or image.numel() == 0:
        raise ValueError(f"image {tuple(image.shape)} must be (3, H, W)")
    if not bool(((image >= 0) & (image <= 1)).all()):
        low, high = float(image.min()), float(image.max())
        raise ValueError(f"image has values in [{low:.3g}, {high:.3g}]: must be pixels in [0, 1], not normalised ones")
    saliency = smooth_map(cam, (image.shape[1], image.shape[2]), sigma_ratio)
    mask = adaptive_mask(saliency, keep_ratio(float(similarity))).to(image.device)
    return image * mask, mask


class BlipMatcher:
    """Explains the match of images and questions by a BLIP matching model, such as Salesforce/blip-itm-large-coco.

    Anything that is called like this and returns the same may take its place.

    Args:
        layer: text layer, counted from 0, whose cross-attention is explained.
        enc_token_id: id of [ENC], which the authors' BLIP puts in the place of [CLS] where it looks at the image;
            None leaves [CLS] there, as transformers does.

    Raises ValueError for a model that is no such BLIP, and for a layer that it does not have.
    """

    def __init__(self, model: Any, layer: int = 6, enc_token_id: int | None = None) -> None:
        if not all(hasattr(model, part) for part in ("vision_model", "text_encoder", "itm_head", "vision_proj")):
            raise ValueError(f"model is a {type(model).__name__}: must be a BlipForImageTextRetrieval")
        layers = model.text_encoder.encoder.layer
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer={layer}: must be in [0, {len(layers)}), the text layers of this BLIP")
        self.model, self.layer, self.enc_token_id = model, layer, enc_token_id

    def __call__(
        self, pixel_values: Float[Tensor, "b 3 height width"], input_ids: Int[Tensor, "b t"], attention_mask: Tensor
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Map of the patches and cosine of each image with the question next to it.

        Works where gradients are switched off, and leaves none behind. Raises ValueError unless there is a text for
        each image, and for a model in training.
        """
        if len(pixel_values) != len(input_ids) or input_ids.shape != attention_mask.shape:
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)}, input_ids {tuple(input_ids.shape)} and attention_mask "
                f"{tuple(attention_mask.shape)} must be B images with B texts: repeat the question for several images"
            )
        if any(isinstance(part, nn.Dropout) and part.training and part.p for part in self.model.modules()):
            raise ValueError("model is in training, and its dropout would blur the map: call model.eval() first")
        with torch.inference_mode(False):
            ids, mask = input_ids.clone(), attention_mask.clone()  # inference tensors cannot take part in a gradient
            with torch.no_grad():
                image = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
                words = self.model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                seen, said = self.model.vision_proj(image[:, 0]), self.model.text_proj(words[:, 0])
                similarity = F.cosine_similarity(_widened(seen), _widened(said))
            attention, gradient = self._explained(image, ids, mask)
        cam = matching_gradcam(_widened(attention[..., 1:]), _widened(gradient[..., 1:]), mask)
        patch = self.model.config.vision_config.patch_size
        return cam.unflatten(-1, (pixel_values.shape[-2] // patch, -1)), similarity

    def _explained(
        self, image: Float[Tensor, "b m d"], ids: Int[Tensor, "b t"], mask: Tensor
    ) -> tuple[Float[Tensor, "b h t m"], Float[Tensor, "b h t m"]]:
        """Cross-attention probabilities of the layer and the gradient of the match score by them."""
        if self.enc_token_id is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], self.enc_token_id), ids[:, 1:]], 1)
        attention = self.model.text_encoder.encoder.layer[self.layer].crossattention.self
        looked_at = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        with torch.enable_grad(), _tracked_from(attention) as caught:
            words = self.model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=image,
                encoder_attention_mask=looked_at,
            ).last_hidden_state
            match = self.model.itm_head(words[:, 0])[:, 1]
            (gradient,) = torch.autograd.grad(match.sum(), caught)
        return caught[0].detach(), gradient


def _widened(x: Tensor) -> Tensor:
    """float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def _tracked_from(attention: Any) -> Iterator[list[Tensor]]:
    """Inside, gradients are tracked from this module's input on; filled by a pass with its probabilities."""
    caught: list[Tensor] = []

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}

    handles = [
        attention.register_forward_pre_hook(begin, with_kwargs=True),
        attention.register_forward_hook(lambda module, args, output: caught.append(output[1])),
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


# While decoding -------------------------------------------------------------------------------------------------------


def agla_logits(
    logits: Float[Tensor, "b v"], logits_local: Float[Tensor, "b v"], alpha: float = 2.0, beta: float = 0.5
) -> Float[Tensor, "b v"]:
    """``logits`` + α · ``logits_local`` on the tokens that ``logits`` finds plausible, −∞ on the others."""
    check_alpha(alpha)
    return plausible_contrast(logits, logits_local, 1.0, alpha, beta)


class AglaLogitsProcessor(ContrastProcessor):
    """AGLA for ``generate(..., logits_processor=[...])``, on any model whose prompt holds images.

    Args:
        model: the model that generates.
        input_ids, attention_mask: its prompts, as given to ``generate``.
        pixel_values: of the view, by the same image processor and at the same size as those given to ``generate``.
        image_sizes, vision: whatever else the model's processor returns for its images, such as ``image_grid_thw``;
            ``AglaLogitsProcessor(model, **{**inputs, "pixel_values": view})`` passes it all on.
        alpha: at least 0; the weight of the view.
        beta: in (0, 1]; how probable a token must be, relative to the best, to be said at all.

    Raises ValueError for prompts without an image, missing inputs and settings out of range.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Int[Tensor, "b t"],
        pixel_values: Tensor,
        attention_mask: Int[Tensor, "b t"] | None = None,
        image_sizes: Int[Tensor, "n 2"] | None = None,
        alpha: float = 2.0,
        beta: float = 0.5,
        **vision: Any,
    ) -> None:
        check_alpha(alpha)
        check_beta(beta)
        check_has_images(model, input_ids)
        inputs = {"pixel_values": pixel_values, "image_sizes": image_sizes, **vision}
        check_pictures(model, inputs)
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        super().__init__([ContrastBranch(model, inputs)], partial(agla_logits, alpha=alpha, beta=beta))
