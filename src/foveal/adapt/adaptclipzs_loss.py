"""The two equations of AdaptCLIPZS: the loss of bags, and the probability of a class from its texts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveal.adapt.base import mean_by_class
from foveal.nn.cosine import unit_rows


class BagLoss(NamedTuple):
    """What `bag_contrastive_loss` gives; ``loss`` is the sum of the other two."""

    loss: Float[Tensor, ""]
    image_to_text: Float[Tensor, ""]
    text_to_image: Float[Tensor, ""]


def bag_contrastive_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    class_ids: Int64[Tensor, " b"] | Sequence[int],
    *,
    logit_scale: float | Tensor,
    tau: float | Tensor = 2.0,
) -> BagLoss:
    """The loss of B pairs of which all with the same class id match. Features are normalised here.

    The mean over the matching ones is taken of log-probabilities: each text of the class is to be likely, not just one
    of them. With class ids that all differ it is CLIP's loss, of which both directions are added.

    Args:
        class_ids: whole numbers; only their equality counts.
        logit_scale, tau: cosines are multiplied by the first and divided by the second; a tensor gets a gradient.

    Raises ValueError for shapes that do not fit, values that are not finite, and a scale or tau that is not positive.
    """
    _check_rows(image_features, text_features)
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"image_features {tuple(image_features.shape)} and text_features {tuple(text_features.shape)} must be "
            "of one shape (B, D)"
        )
    ids = torch.as_tensor(class_ids, device=image_features.device)
    if ids.shape != image_features.shape[:1] or ids.is_floating_point():
        raise ValueError(
            f"class_ids {tuple(ids.shape)} of {ids.dtype} must be one whole number for each of "
            f"{len(image_features)} pairs"
        )
    scale = _positive("logit_scale", logit_scale) / _positive("tau", tau)
    images, texts = _units(image_features, text_features)
    scores = scale * images @ texts.T
    matching = (ids[:, None] == ids).to(scores.dtype)
    weights = matching / matching.sum(1, keepdim=True)  # the same in both directions: who matches whom is symmetric
    image_to_text = -(weights * scores.log_softmax(1)).sum(1).mean()
    text_to_image = -(weights * scores.T.log_softmax(1)).sum(1).mean()
    return BagLoss(image_to_text + text_to_image, image_to_text, text_to_image)


def description_probabilities(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "m d"],
    class_index: Int64[Tensor, " m"] | Sequence[int],
    num_classes: int,
    *,
    logit_scale: float | Tensor,
) -> Float[Tensor, "b k"]:
    """How probable each of K classes is: the mean probability of its texts, in a softmax over the texts of all classes.

    Rows do not sum to one unless each class has one text. This is not the order of the mean cosines: with a scale
    around 100 a single text that fits well outweighs several that fit somewhat.

    Args:
        class_index: the class of each text; the texts of a class may stand anywhere.
        logit_scale: CLIP's own, without tau.

    Raises ValueError for shapes that do not fit, values that are not finite, and a class without a text.
    """
    _check_rows(image_features, text_features)
    if image_features.shape[1] != text_features.shape[1]:
        raise ValueError(
            f"image_features {tuple(image_features.shape)} and text_features {tuple(text_features.shape)} must have "
            "the same width"
        )
    images, texts = _units(image_features, text_features)
    scores = _positive("logit_scale", logit_scale) * images @ texts.T
    return mean_by_class(scores.softmax(1), torch.as_tensor(class_index, device=scores.device), num_classes)


def _check_rows(image_features: Tensor, text_features: Tensor) -> None:
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"{name} {tuple(features.shape)} must be (rows, D), neither of them 0")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: check the encoder's output")


def _units(image_features: Float[Tensor, "b d"], text_features: Float[Tensor, "m d"]) -> tuple[Tensor, Tensor]:
    """Unit rows of one dtype, the wider one."""
    images, texts = unit_rows(image_features), unit_rows(text_features)
    dtype = torch.promote_types(images.dtype, texts.dtype)
    return images.to(dtype), texts.to(dtype)


def _positive(name: str, value: float | Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} {tuple(value.shape)} must be a single number")
    number = float(value.detach()) if isinstance(value, Tensor) else float(value)
    if not 0 < number < torch.inf:
        raise ValueError(f"{name}={number}: must be positive and finite")
    return value.reshape(()) if isinstance(value, Tensor) else value
