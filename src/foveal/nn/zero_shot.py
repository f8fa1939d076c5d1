"""A classifier from the names of its classes: write each name into prompts, embed them, average, compare with images.

    w_k = normalise( mean_τ normalise(t_kτ) )          logits = scale · v̂ w_kᵀ

Radford et al. (CLIP), ICML 2021, arXiv 2103.00020, section 3.1. The ensemble is one of embeddings, not of
probabilities: it is computed once for each set of labels and costs nothing for each image.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.nn.cosine import unit_rows


def ensemble_text_features(text_features: Float[Tensor, "k t d"]) -> Float[Tensor, "k d"]:
    """Unit rows, one for each of K classes, from T prompts a class; every prompt counts alike, whatever its norm."""
    if text_features.ndim != 3 or 0 in text_features.shape:
        raise ValueError(f"text_features {tuple(text_features.shape)} must be (classes, prompts, D), none of them 0")
    if not bool(text_features.isfinite().all()):
        raise ValueError("text_features holds NaN or infinity: check the text encoder's output")
    return unit_rows(unit_rows(text_features).mean(1))


def zero_shot_logits(
    image_features: Float[Tensor, "b d"], class_features: Float[Tensor, "k d"], scale: float | Tensor = 100.0
) -> Float[Tensor, "b k"]:
    """Scores whose softmax over K are class probabilities.

    Images are normalised here; ``class_features`` are taken as they are: unit rows from `ensemble_text_features`.

    ValueError for shapes that do not fit and features that are not finite.
    """
    if image_features.ndim != 2 or class_features.ndim != 2 or image_features.shape[1] != class_features.shape[1]:
        raise ValueError(
            f"image_features {tuple(image_features.shape)} and class_features {tuple(class_features.shape)} "
            "must be (B, D) and (K, D)"
        )
    for name, tower, features in (("image", "image", image_features), ("class", "text", class_features)):
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name}_features holds NaN or infinity: check the {tower} encoder's output")
    images = unit_rows(image_features)
    return scale * images @ class_features.T.to(images.dtype)


@torch.no_grad()
def build_zero_shot_classifier(
    encode_text: Callable[[list[str]], Float[Tensor, "n d"]],
    classnames: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "k d"]:
    """Class features for `zero_shot_logits`.

    Args:
        encode_text: at most ``batch_size`` strings -> their features, in any scale. It is called on all prompts of the
            first class, then on those of the second, and so on, cut into batches; no gradient is recorded.
        templates: strings with ``{}`` in the place of the name, or functions from name to prompt.
    """
    for label, values in (("classnames", classnames), ("templates", templates)):
        if isinstance(values, str) or len(values) == 0:
            raise ValueError(f"{label}={values!r}: must be a list with at least one entry")
    if bad := [template for template in templates if isinstance(template, str) and "{}" not in template]:
        raise ValueError(f"templates holds {bad[0]!r}, which has no '{{}}' for the class name")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    prompts = [
        template.replace("{}", name) if isinstance(template, str) else template(name)
        for name in classnames
        for template in templates
    ]
    batches = [encode_text(prompts[start : start + batch_size]) for start in range(0, len(prompts), batch_size)]
    return ensemble_text_features(torch.cat(batches).unflatten(0, (len(classnames), len(templates))))
