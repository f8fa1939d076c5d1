"""What CLOC asks of regions: find your text among those of the batch, find your box, be found again (recall).

See `foveal.pretrain.cloc`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.nn.boxes import giou
from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import alike, finite_loss, full_precision, positive_scale

BOX_LOSSES = ("l2", "l1", "l1_giou")


@dataclass
class RegionTextLoss:
    """The mean of both directions: regions choose among texts (r2t), texts among regions (t2r)."""

    loss: Float[Tensor, ""]
    r2t: Float[Tensor, ""]
    t2r: Float[Tensor, ""]


@dataclass(frozen=True)
class RegionRows:
    """Regions with their texts, row by row, as unit vectors of one dtype; zeros where ``mask`` is False."""

    region: Float[Tensor, "r e"]
    text: Float[Tensor, "r e"]
    mask: Bool[Tensor, " r"]

    @classmethod
    def of(cls, region: Tensor, text: Tensor, mask: Tensor) -> "RegionRows":
        region, text = alike(*(x.masked_fill(~mask[:, None], 0) for x in (region, text)))
        return cls(unit_rows(region), unit_rows(text), mask)


def region_text_contrastive(
    region: Float[Tensor, "r e"],
    text: Float[Tensor, "r e"],
    logit_scale: float | Tensor,
    mask: Bool[Tensor, " r"] | None = None,
    ignore_above: float | None = 0.9,
) -> RegionTextLoss:
    """Symmetric contrastive loss of R regions and their texts, which are normalised here.

    Region texts repeat ("person"). A text whose cosine to that of row i is above ``ignore_above`` is therefore no
    negative of i, in neither direction; the own one always stays.

    Args:
        logit_scale: positive multiplier of the cosines (not its logarithm), a float or a 0-d tensor.
        mask: True for real regions; others count neither as rows nor as negatives. Without any, the loss is 0.
        ignore_above: None keeps all negatives.

    Raises ValueError for shapes that do not fit, a scale that is not positive, and non-finite vectors.
    """
    if region.ndim != 2 or region.shape != text.shape:
        raise ValueError(f"region {tuple(region.shape)} and text {tuple(text.shape)} must be (R, E) alike")
    mask = _checked_mask(mask, region)
    rows = RegionRows.of(region, text, mask)
    out = contrast_regions(rows, rows, 0, logit_scale, ignore_above, mask.sum().float())
    finite_loss(out.loss, region=rows.region, text=rows.text)
    return out


def contrast_regions(
    rows: RegionRows,
    everything: RegionRows,
    first: int,
    logit_scale: float | Tensor,
    ignore_above: float | None,
    count: Tensor,
) -> RegionTextLoss:
    """The loss of the rows of this process against those of all, ``everything``, among which they begin at ``first``.

    ``count``: what the sum over the real rows is divided by.
    """
    if ignore_above is not None and not -1 <= ignore_above <= 1:
        raise ValueError(f"ignore_above={ignore_above}: must be a cosine, or None to keep all negatives")
    scale = positive_scale(logit_scale, like=rows.region, name="logit_scale")
    real = rows.mask.nonzero().flatten()
    with full_precision(rows.region):
        ignored = ~everything.mask.expand(len(real), -1)
        if ignore_above is not None:
            cosines = (rows.text.detach()[real] @ everything.text.detach().T).clamp(max=1)  # 1.0000001 of equal texts
            ignored = ignored | (cosines > ignore_above)
        own = (first + real)[:, None] == torch.arange(len(everything.mask), device=real.device)
        ignored = ignored & ~own
        directions = []
        for left, right in ((rows.region, everything.text), (rows.text, everything.region)):
            scores = (scale * left[real] @ right.T).masked_fill(ignored, -torch.inf)
            directions.append((scores.logsumexp(1) - scores[own]).sum() / count.clamp(min=1e-6))
    return RegionTextLoss((directions[0] + directions[1]) / 2, *directions)


def grounding_loss(
    pred: Float[Tensor, "r 4"], target: Float[Tensor, "r 4"], mask: Bool[Tensor, " r"] | None = None, kind: str = "l2"
) -> Float[Tensor, ""]:
    """How far predicted boxes are from the true ones, both x1, y1, x2, y2, averaged over the real regions; 0 if none.

    Args:
        kind: "l2" squared or "l1" absolute differences, summed over the four numbers; "l1_giou" adds 1 − GIoU to these.

    Raises ValueError for an unknown kind, shapes that do not fit, and non-finite boxes.
    """
    if pred.ndim != 2 or pred.shape[1] != 4 or pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must be (R, 4) alike")
    mask = _checked_mask(mask, pred)
    errors = box_errors(pred[mask], target[mask], kind)
    return finite_loss(errors.sum() / mask.sum().clamp(min=1), pred=pred[mask], target=target[mask])


def box_errors(pred: Float[Tensor, "r 4"], target: Float[Tensor, "r 4"], kind: str) -> Float[Tensor, " r"]:
    """The error of each box; see `grounding_loss`."""
    if kind not in BOX_LOSSES:
        raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(BOX_LOSSES)}")
    wide = torch.promote_types(pred.dtype, torch.float32)
    pred, target = pred.to(wide), target.to(wide)
    if kind == "l2":
        return (pred - target).square().sum(-1)
    errors = (pred - target).abs().sum(-1)
    return errors if kind == "l1" else errors + 1 - giou(pred, target)


def sample_regions(
    valid: Bool[Tensor, "b r"], num: int, generator: torch.Generator | None
) -> tuple[Int[Tensor, "b num"], Bool[Tensor, "b num"]]:
    """Up to ``num`` of the valid regions of every image: their indices, and which places are filled.

    Uniform, without replacement. Without a generator, the first ones: detectors list the surest first. Places that are
    left over hold index 0 and False.

    Raises ValueError for ``num`` below 1 and a ``valid`` that is not a bool (B, R).
    """
    if num < 1:
        raise ValueError(f"num={num}: must be at least 1")
    if valid.ndim != 2 or valid.dtype != torch.bool:
        raise ValueError(f"valid {tuple(valid.shape)} of {valid.dtype} must be (B, R) of torch.bool; give valid.bool()")
    if generator is None:
        rank = -torch.arange(valid.shape[1], device=valid.device).expand(valid.shape).double()
    else:
        rank = torch.rand(valid.shape, generator=generator, dtype=torch.double, device=generator.device)
    rank = rank.to(valid.device).masked_fill(~valid, -torch.inf)
    index = rank.argsort(dim=1, descending=True, stable=True)[:, :num]
    mask = valid.gather(1, index)
    missing = num - index.shape[1]
    return F.pad(index.masked_fill(~mask, 0), (0, missing)), F.pad(mask, (0, missing))


@torch.no_grad()
def region_recall(
    region: Float[Tensor, "r e"], text: Float[Tensor, "r e"], ks: Sequence[int] = (1, 5, 10)
) -> Float[Tensor, "k 2"]:
    """Share of regions whose text is among the best k (first column), and of texts whose region is (second).

    A hit: fewer than k candidates score strictly higher than the true one. Equal texts therefore do no harm.

    Raises ValueError for shapes that do not fit, non-finite vectors, and a k below 1.
    """
    if region.ndim != 2 or region.shape != text.shape or 0 in region.shape:
        raise ValueError(f"region {tuple(region.shape)} and text {tuple(text.shape)} must be (R, E) alike, R and E > 0")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: give numbers of at least 1")
    scores = unit_rows(region.double()) @ unit_rows(text.double()).T
    finite_loss(scores.sum(), region=region, text=text)
    better = scores > scores.diagonal()[:, None] + 1e-9  # equal vectors may differ in the last digits of their product
    worse = scores > scores.diagonal() + 1e-9
    ranks = torch.stack([better.sum(1), worse.sum(0)], 1)
    return torch.stack([(ranks < k).double().mean(0) for k in ks]).float()


def _checked_mask(mask: Tensor | None, rows: Tensor) -> Bool[Tensor, " r"]:
    if mask is None:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if mask.dtype != torch.bool or mask.shape != rows.shape[:1]:
        raise ValueError(f"mask {tuple(mask.shape)} of {mask.dtype} must be ({len(rows)},) of torch.bool")
    return mask


def gathered_regions(rows: RegionRows, gather: Any) -> RegionRows:
    """The rows of all processes; ``gather`` collects a tensor from them."""
    mask = gather(rows.mask.to(torch.uint8)).bool()
    return RegionRows(gather(rows.region), gather(rows.text), mask)
