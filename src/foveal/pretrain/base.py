"""What contrastive objectives share: their output, the learned scale, features of all devices, checks."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from typing import Any, SupportsFloat

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.nn.gather import first_order_only as first_order_only
from foveal.nn.gather import gather_features as gather_features
from foveal.nn.gather import mean_over_processes as mean_over_processes


@dataclass
class ContrastiveOutput:
    """A loss, its two directions, and the scores behind them: B rows of this device, G columns of all devices."""

    loss: Float[Tensor, ""]
    image_to_text: Float[Tensor, ""]
    text_to_image: Float[Tensor, ""]
    logits_per_image: Float[Tensor, "b g"] | None = None
    logits_per_text: Float[Tensor, "b g"] | None = None


class LogitScale(nn.Module):
    """The learned multiplier of cosines, exp(``log_scale``). A temperature τ is a scale of 1/τ."""

    def __init__(self, init: float = 1 / 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        if not 0 < init < math.inf:
            raise ValueError(f"init={init}: must be a positive multiplier, not its logarithm")
        if not 1 <= max_scale < math.inf:
            raise ValueError(f"max_scale={max_scale}: must be at least 1")
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(init)))

    def forward(self) -> Float[Tensor, ""]:
        """The multiplier, with gradient."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the scale back into [1, ``max_scale``], in place. Call it after every optimiser step.

        Inside ``forward`` the gradient would be zero at the bound, and a scale that reached it could never return.
        """
        self.log_scale.clamp_(0, math.log(self.max_scale))
        # exp of the rounded bound may be above max_scale by the last digit
        lower = self.log_scale * (1 - torch.finfo(self.log_scale.dtype).eps)
        self.log_scale.copy_(torch.where(self() > self.max_scale, lower, self.log_scale))


def check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    """ValueError unless both are (B, D) with the same B > 0 and D."""
    images, texts = tuple(image_features.shape), tuple(text_features.shape)
    if len(images) != 2 or images != texts or 0 in images:
        raise ValueError(f"image_features {images} and text_features {texts} must be (B, D) alike with B and D > 0")


def check_gathered(local: Tensor, all_image_features: Tensor, all_text_features: Tensor, rank: int) -> None:
    """ValueError unless both are (G, D) for ``local`` (B, D), G is a multiple of B and ``rank`` is in [0, G/B)."""
    check_pairs(all_image_features, all_text_features)
    rows, total = len(local), len(all_image_features)
    if all_image_features.shape[1] != local.shape[1]:
        raise ValueError(f"gathered features {tuple(all_image_features.shape)} must be as wide as {tuple(local.shape)}")
    if total % rows:
        raise ValueError(f"gathered features have {total} rows: must be a multiple of the {rows} rows of this process")
    if not 0 <= rank < total // rows:
        raise ValueError(f"rank={rank}: must be in [0, {total // rows}), the {total} gathered rows over {rows} each")


def alike(*features: Tensor) -> tuple[Tensor, ...]:
    """The features in the smallest dtype that holds all of theirs; themselves if they have one."""
    wide = reduce(torch.promote_types, (x.dtype for x in features))
    return tuple(x.to(wide) for x in features)


def rounded(cosines: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Multiples of 2⁻³⁰ in float64. Of float64 cosines, those of equal rows tie, however their sums were taken."""
    return (cosines.double() * 2**30).round() / 2**30


def unit_pairs(
    image_features: Tensor,
    text_features: Tensor,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows of the own pairs and of all pairs, all of one dtype.

    Without gathered features all pairs are the own ones, the same tensors.

    Raises ValueError for shapes that do not pair up, and when the features of one side only are gathered.
    """
    check_pairs(image_features, text_features)
    if all_image_features is None and all_text_features is None:
        image, text = map(unit_rows, alike(image_features, text_features))
        return image, text, image, text
    if all_image_features is None or all_text_features is None:
        missing = "all_image_features" if all_image_features is None else "all_text_features"
        raise ValueError(f"{missing}=None: give the gathered features of both sides, or of neither")
    everything = alike(image_features, text_features, all_image_features, all_text_features)
    image, text, all_image, all_text = map(unit_rows, everything)
    return image, text, all_image, all_text


def gathered_pairs(
    image_features: Tensor, text_features: Tensor, group: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """`unit_pairs` of this process, those of all processes of ``group`` with gradient, and the rank of this one."""
    image, text, *_ = unit_pairs(image_features, text_features)
    if not (dist.is_available() and dist.is_initialized()):
        return image, text, image, text, 0
    return image, text, gather_features(image, group), gather_features(text, group), dist.get_rank(group)


def pair_scores(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g d"],
    scale: Float[Tensor, ""],
    rank: int,
) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"], Int[Tensor, " b"]]:
    """Scaled cosines of unit rows, images by texts and texts by images, and the column of each row's own partner.

    On one device ``all_image`` is ``image``, and one product serves both directions.
    """
    check_gathered(image, all_image, all_text, rank)
    with full_precision(image):
        per_image = scale * image @ all_text.T
        per_text = per_image.T if all_image is image and all_text is text else scale * text @ all_image.T
    return per_image, per_text, rank * len(image) + torch.arange(len(image), device=image.device)


def pair_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g d"],
    scale: Float[Tensor, ""],
    rank: int,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit rows: mean over the two directions of the cross-entropies of `pair_scores`."""
    per_image, per_text, own = pair_scores(image, text, all_image, all_text, scale, rank)
    with full_precision(image):
        return (F.cross_entropy(per_image, own) + F.cross_entropy(per_text, own)) / 2


def positive_scale(scale: float | Tensor, like: Tensor, name: str = "scale") -> Float[Tensor, ""]:
    """``scale`` as a 0-d tensor with dtype and device of ``like``; ValueError unless it is one positive number."""
    if not isinstance(scale, SupportsFloat) or getattr(scale, "ndim", 0) != 0:
        found = f" {tuple(scale.shape)}" if hasattr(scale, "shape") else f"={scale!r}"
        raise ValueError(f"{name}{found} must be a float or a 0-d tensor")
    value = float(scale.detach() if isinstance(scale, Tensor) else scale)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: must be positive and finite; give the value itself, not its logarithm")
    return torch.as_tensor(scale, dtype=like.dtype, device=like.device)


def finite_loss(loss: Float[Tensor, ""], **inputs: Tensor) -> Float[Tensor, ""]:
    """``loss``, or a ValueError naming the first input that holds NaN or infinity.

    One look at the loss replaces one at each input: a single bad feature reaches it, on every device. So all devices
    raise together, and none is left waiting for the others.
    """
    if bool(loss.isfinite()):
        return loss
    bad = next((name for name, value in inputs.items() if not bool(value.isfinite().all())), None)
    if bad is None:
        raise ValueError(f"the loss is {loss.item()} although all features are finite: scale is too large")
    raise ValueError(f"{bad} holds NaN or infinity: the loss is {loss.item()}")


def finite_on_all(loss: Float[Tensor, ""], group: Any = None, **inputs: Tensor) -> Float[Tensor, ""]:
    """`finite_loss` for a loss of which other processes do not see every part: all of them raise, or none."""
    everyone = mean_over_processes(loss, group)
    finite_loss(everyone, **inputs, **{"another process": everyone})
    return loss


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast would compute the scores in half precision, where neighbouring cosines coincide."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``x`` itself, or in float32 if it is of half precision: losses are computed so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
