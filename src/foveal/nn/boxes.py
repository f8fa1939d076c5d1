"""Boxes as tensors: the two ways to write them, how far two of them overlap, and the suppression of near-duplicates.

Corners (x0, y0, x1, y1) or centre and size (cx, cy, w, h), in any unit. `iou` and `giou` compare the last axis and
broadcast over the others: ``iou(a[:, None], b)`` compares every box of a with every box of b.

    IoU = |A∩B| / |A∪B|            GIoU = IoU − |hull ∖ (A∪B)| / |hull|

GIoU: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, arXiv 1902.09630. Everything is computed in
float32 or better; where both boxes have no area IoU is 0, and nothing becomes NaN.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def corners(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """x0, y0, x1, y1 from cx, cy, w, h."""
    centre, size = check_boxes(boxes, "boxes").split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centres(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """cx, cy, w, h from x0, y0, x1, y1."""
    low, high = check_boxes(boxes, "boxes").split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Of corners; 0 where they are swapped."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Intersection over union of corners, 0 to 1."""
    return _overlap(a, b)[0]


def giou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Generalised intersection over union of corners, −1 to 1: it has a gradient where the boxes are apart."""
    overlap, union, a, b = _overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = area(torch.cat([low, high], -1))
    return overlap - _ratio(hull - union, hull)


def nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    threshold: float = 0.5,
    classes: Int[Tensor, " n"] | None = None,
) -> Int[Tensor, " k"]:
    """Indices of the boxes to keep, best first: none overlaps a better kept one (of its class) beyond the threshold.

    Greedy non-maximum suppression without a loop over boxes: "kept" is the one solution of *kept ⇔ no better kept box
    overlaps*, which repeated substitution reaches after as many rounds as the longest chain of suppressions. Ties go to
    the box that comes first. Takes n² numbers of memory: cut to the best few thousand before.

    Raises ValueError for shapes that do not fit and a threshold outside [0, 1].
    """
    if check_boxes(boxes, "boxes").ndim != 2 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"boxes {tuple(boxes.shape)}, scores {tuple(scores.shape)}: must be (N, 4) and (N,)")
    if classes is not None and classes.shape != scores.shape:
        raise ValueError(f"classes {tuple(classes.shape)} must be (N,) = {tuple(scores.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be an IoU from 0 to 1")
    order = scores.sort(descending=True, stable=True).indices
    ranked = boxes[order]
    rivals = iou(ranked[:, None], ranked) > threshold
    if classes is not None:
        rivals &= classes[order][:, None] == classes[order]
    rivals = rivals.triu(1)  # row i suppresses column j: only worse ones
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        found = ~(rivals & kept[:, None]).any(0)
        if torch.equal(found, kept):
            return order[kept]
        kept = found


def check_boxes(boxes: Tensor, name: str) -> Tensor:
    """``boxes`` in float32 or better; ValueError unless their last axis has 4 entries."""
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} {tuple(boxes.shape)} must end in 4 numbers for each box")
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU, area of the union, and both inputs as they were compared."""
    a, b = check_boxes(a, "a"), check_boxes(b, "b")
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - shared
    return _ratio(shared, union), union, a, b


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 0 with gradient 0 where ``whole`` is 0."""
    empty = whole <= 0
    return (part / whole.masked_fill(empty, 1)).masked_fill(empty, 0)
