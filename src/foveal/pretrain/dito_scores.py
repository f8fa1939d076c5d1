"""Class scores of DITO's regions: cosines with text vectors, and the ensemble of the detector with a frozen model.

e_k ∝ p_k^(1−w_k) · z_k^(w_k),   e_0 ∝ p_0,   w_k = α (base class) or β (novel class)     score = objectness^γ · e
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import full_precision, positive_scale


def region_text_logits(
    regions: Float[Tensor, "*b r d"], text: Float[Tensor, "k d"], temperature: float | Tensor
) -> Float[Tensor, "*b r k"]:
    """Cosines over the temperature, in float32 or better; 0 for a region vector of zeros.

    Raises ValueError for widths that differ and a temperature that is not positive.
    """
    if text.ndim != 2 or regions.ndim < 2 or regions.shape[-1] != text.shape[1]:
        raise ValueError(f"regions {tuple(regions.shape)}, text {tuple(text.shape)}: must be (…, R, D) and (K, D)")
    rows, classes = unit_rows(regions), unit_rows(text)
    with full_precision(rows):
        return rows @ classes.T.to(rows.dtype) / positive_scale(temperature, like=rows, name="temperature")


def ensemble_scores(
    det_logits: Float[Tensor, "b r k"],
    vlm_logits: Float[Tensor, "b r k"],
    base: Bool[Tensor, " k"] | None = None,
    alpha: float = 0.35,
    beta: float = 0.65,
    objectness: Float[Tensor, "b r"] | None = None,
    objectness_power: float = 3.0,
) -> Float[Tensor, "b r k"]:
    """Class scores of detector and frozen model together; class 0, the background, is the detector's alone.

    Args:
        base: True for classes with box labels, which trust the detector more; None: all classes are novel.
        alpha, beta: weight of the frozen model for base and for novel classes, 0 to 1.
        objectness: how much of an object each region is, 0 to 1; multiplied to its power after normalisation.

    A logit of −∞ rules its class out where its model has a weight, and says nothing where the weight is 0.

    Raises ValueError for shapes that do not fit, weights outside [0, 1], objectness outside [0, 1], logits of NaN or +∞
    and regions that no class is left for.
    """
    if det_logits.ndim != 3 or det_logits.shape != vlm_logits.shape:
        shapes = f"det_logits {tuple(det_logits.shape)}, vlm_logits {tuple(vlm_logits.shape)}"
        raise ValueError(f"{shapes}: must be (B, R, K) alike")
    if base is not None and base.shape != det_logits.shape[2:]:
        raise ValueError(f"base {tuple(base.shape)} must be (K,) = {tuple(det_logits.shape[2:])}")
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise ValueError(f"alpha={alpha}, beta={beta}: must be weights from 0 to 1")
    dtype = torch.promote_types(torch.promote_types(det_logits.dtype, vlm_logits.dtype), torch.float32)
    weight = torch.full(det_logits.shape[2:], beta, dtype=dtype, device=det_logits.device)
    if base is not None:
        weight = weight.masked_fill(base.bool(), alpha)
    weight = torch.cat([torch.zeros_like(weight[:1]), weight[1:]])
    detector, frozen = (x.to(dtype).log_softmax(-1) for x in (det_logits, vlm_logits))
    first, second = ((w * x).masked_fill(w == 0, 0) for w, x in ((1 - weight, detector), (weight, frozen)))
    scores = (first + second).softmax(-1)  # a product of powers, normalised
    if bool(scores.isnan().any()):
        odd = [name for name, x in (("det_logits", detector), ("vlm_logits", frozen)) if bool(x.isnan().any())]
        named = " and ".join(odd or ["det_logits with vlm_logits"])
        raise ValueError(f"{named} must be without NaN and +∞ and leave at least one class for each region")
    if objectness is None:
        return scores
    if objectness.shape != det_logits.shape[:2]:
        raise ValueError(f"objectness {tuple(objectness.shape)} must be (B, R) = {tuple(det_logits.shape[:2])}")
    low, high = (float(bound) for bound in objectness.detach().aminmax()) if objectness.numel() else (0.0, 1.0)
    if not 0 <= low <= high <= 1:
        raise ValueError("objectness must be from 0 to 1: take the sigmoid of logits")
    return objectness.to(dtype)[..., None] ** objectness_power * scores
