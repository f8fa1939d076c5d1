"""Which predicted box is for which target, and how far it is off: the set-prediction half of GRAIN.

Boxes are cx, cy, w, h in [0, 1]. The assignment and its weights are those of DETR without the class term: Carion et
al., End-to-End Object Detection with Transformers, ECCV 2020, arXiv 2005.12872.
"""

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from foveal.nn.boxes import corners, giou


@torch.no_grad()
def match_boxes(
    pred: Float[Tensor, "b q 4"],
    target: Float[Tensor, "b t 4"],
    mask: Bool[Tensor, "b t"],
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
) -> Int[Tensor, "b q"]:
    """Which target each predicted box is for: its index, or −1. min(Q, valid targets) pairs in each image, no gradient.

    Args:
        pred, target: cx, cy, w, h in [0, 1].
        mask: True where a target is one.

    Raises ValueError for shapes that do not fit and non-finite boxes.
    """
    mask = check_pairs_of_boxes(pred, target, mask)
    found, wanted = pred.cpu().double()[:, :, None], target.cpu().double()[:, None]
    cost = cost_bbox * (found - wanted).abs().sum(-1) - cost_giou * giou(corners(found), corners(wanted))
    match = torch.full(pred.shape[:2], -1, dtype=torch.int64)
    for row, table, valid in zip(match, cost.numpy(), mask.cpu(), strict=True):
        places = valid.nonzero()[:, 0]
        queries, columns = linear_sum_assignment(table[:, places.numpy()])
        row[torch.from_numpy(queries)] = places[torch.from_numpy(columns)]
    return match.to(pred.device)


def box_losses(
    pred: Float[Tensor, "b q 4"], target: Float[Tensor, "b t 4"], mask: Bool[Tensor, "b t"], match: Int[Tensor, "b q"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Σ|b̂ − b| over the four numbers and Σ(1 − GIoU) of the matched pairs, each over the number of valid targets.

    Both are 0, with gradient 0, where there is no valid target. Raises ValueError for what does not fit together.
    """
    mask = check_pairs_of_boxes(pred, target, mask)
    check_match(match, pred, mask)
    l1, overlap = box_sums(pred, target, match)
    count = mask.sum().clamp(min=1)
    return l1 / count, overlap / count


def box_sums(
    pred: Float[Tensor, "b q 4"], target: Float[Tensor, "b t 4"], match: Int[Tensor, "b q"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sums over the matched pairs of Σ|b̂ − b| and of 1 − GIoU, in float32 or better."""
    image, query = (match >= 0).nonzero(as_tuple=True)
    found, wanted = pred[image, query], target[image, match[image, query]]
    dtype = torch.promote_types(torch.promote_types(found.dtype, wanted.dtype), torch.float32)
    found, wanted = found.to(dtype), wanted.to(dtype)
    return (found - wanted).abs().sum(), (1 - giou(corners(found), corners(wanted))).sum()


def check_pairs_of_boxes(pred: Tensor, target: Tensor, mask: Tensor) -> Bool[Tensor, "b t"]:
    """The mask as booleans; ValueError for shapes that do not fit and for non-finite boxes."""
    if pred.ndim != 3 or target.ndim != 3 or pred.shape[2] != 4 or target.shape[2] != 4 or len(pred) != len(target):
        shapes = f"pred {tuple(pred.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"{shapes}: must be (B, Q, 4) and (B, T, 4) of the same B")
    mask = check_mask(mask, target)
    if not (bool(pred.isfinite().all()) and bool(target[mask].isfinite().all())):
        raise ValueError("pred or a valid target holds NaN or infinity")
    return mask


def check_mask(mask: Tensor, rows: Tensor) -> Bool[Tensor, "b t"]:
    """The mask as booleans; ValueError unless it has one entry for each of the ``rows`` (B, T, …)."""
    if mask.shape != rows.shape[:2]:
        raise ValueError(f"mask {tuple(mask.shape)} must be (B, T) = {tuple(rows.shape[:2])}")
    return mask.bool()


def check_match(match: Tensor, queries: Tensor, mask: Tensor) -> None:
    """ValueError unless every match is −1 or names a valid target of its own image."""
    if match.shape != queries.shape[:2] or match.is_floating_point():
        raise ValueError(
            f"match {match.dtype} {tuple(match.shape)} must be whole numbers (B, Q) = {tuple(queries.shape[:2])}"
        )
    if match.numel() and not -1 <= int(match.min()) <= int(match.max()) < max(mask.shape[1], 1):
        raise ValueError(
            f"match holds {int(match.min())} to {int(match.max())}: must be −1 or one of {mask.shape[1]} targets"
        )
    image, query = (match >= 0).nonzero(as_tuple=True)
    if len(image) and not bool(mask[image, match[image, query]].all()):
        raise ValueError("match names a target that mask hides")


def with_area(boxes: Float[Tensor, "b t 4"], mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """The mask without boxes that have no area; ValueError when a valid box is not in shares of the picture."""
    given = boxes[mask].detach()
    if given.numel() and not -1e-3 <= float(given.min()) <= float(given.max()) <= 1 + 1e-3:
        raise ValueError(f"boxes holds {float(given.min())} to {float(given.max())}: must be cx, cy, w, h in [0, 1]")
    return mask & (boxes[..., 2:] > 0).all(-1)
