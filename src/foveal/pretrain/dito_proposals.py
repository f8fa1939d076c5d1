"""Where objects may be: a class-free proposal head in DITO's detector, its targets and its losses.

At each place of each level of the pyramid stands one square anchor of 8 × 8 cells. The head says how central the place
is in an object (`centerness`), not of which class, and how far the object's edges are; so it also fires on what has no
label. Kim et al., Learning Open-World Object Proposals without Learning to Classify (OLN), RA-L 2022, arXiv 2108.06753.
The released code samples 256 anchors for each image; here all of them count, objects and background on equal terms.

Boxes are x0, y0, x1, y1 in shares of the picture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.boxes import centres, corners, iou, nms

ANCHOR_CELLS = 8
POSITIVE, NEGATIVE = 0.5, 0.3
"""Overlap of an anchor with an object from which it is one, and below which it is none; between them it is neither."""
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LARGEST_STEP = math.log(1000 / 16)


@dataclass
class Proposals:
    """All places of all levels, N: their boxes, their objectness before the sigmoid, and their anchors."""

    boxes: Float[Tensor, "b n 4"]
    logits: Float[Tensor, "b n"]
    anchors: Float[Tensor, "n 4"]


class ProposalHead(nn.Module):
    """3×3 convolution, layer norm, ReLU; then objectness and the four distances. Shared by all levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.objectness = nn.Linear(channels, 1)
        self.distances = nn.Linear(channels, 4)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif not name.startswith("norm"):
                nn.init.normal_(parameter, std=0.01)

    def forward(self, maps: Mapping[int, Float[Tensor, "b c _ _"]]) -> Proposals:
        """Distances are positive multiples of half an anchor: a head of zeros proposes the anchors."""
        boxes, logits, anchors = [], [], []
        for level in maps.values():
            places = F.relu(self.norm(self.conv(level).flatten(2).mT))
            squares = make_anchors(level.shape[2], level.shape[3], level)
            middle, size = centres(squares).split(2, -1)
            left, right, top, bottom = self.distances(places).clamp(max=LARGEST_STEP).exp().unbind(-1)
            low, high = torch.stack([left, top], -1), torch.stack([right, bottom], -1)
            boxes.append(torch.cat([middle - low * size / 2, middle + high * size / 2], -1))
            logits.append(self.objectness(places)[..., 0])
            anchors.append(squares)
        return Proposals(torch.cat(boxes, 1).clamp(0, 1), torch.cat(logits, 1), torch.cat(anchors))


def make_anchors(height: int, width: int, like: Tensor) -> Float[Tensor, "n 4"]:
    """The squares of a map, row by row; dtype and device of ``like``."""
    y = (torch.arange(height, device=like.device) + 0.5) / height
    x = (torch.arange(width, device=like.device) + 0.5) / width
    middle = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    size = torch.tensor([ANCHOR_CELLS / width, ANCHOR_CELLS / height], device=like.device).expand_as(middle)
    return corners(torch.cat([middle, size], -1)).to(like)


def edge_distances(places: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Left, right, top, bottom: from places (x, y) to the edges; negative from outside."""
    x, y = places.unbind(-1)
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([x - x0, x1 - x, y - y0, y1 - y], -1)


def centerness(lrtb: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """√( min(l,r)/max(l,r) · min(t,b)/max(t,b) ) of distances to the left, right, top and bottom edge.

    1 in the middle of a box, 0 on its edges and outside it.
    """
    if lrtb.ndim < 1 or lrtb.shape[-1] != 4:
        raise ValueError(f"lrtb {tuple(lrtb.shape)} must end in the distances to left, right, top and bottom")
    near, far = lrtb.unflatten(-1, (2, 2)).aminmax(dim=-1)
    inside = (near > 0).all(-1)
    return (near / far.masked_fill(far == 0, 1)).prod(-1).masked_fill(~inside, 0).sqrt()


def assign_anchors(anchors: Float[Tensor, "n 4"], truth: Float[Tensor, "t 4"]) -> Int[Tensor, " n"]:
    """Index of the object each anchor is for, −1 for background, −2 for neither.

    An anchor can be for an object only if its middle lies in it; the best of these is, however little they overlap.
    """
    if len(truth) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    overlap = iou(anchors[:, None], truth)
    inside = (edge_distances(centres(anchors)[:, None, :2], truth) > 0).all(-1)
    best, index = overlap.masked_fill(~inside, -1).max(1)
    target = torch.where(overlap.amax(1) < NEGATIVE, -1, -2)
    target = torch.where(best >= POSITIVE, index, target)
    value, place = overlap.masked_fill(~inside, -1).max(0)
    forced = value >= 0  # objects that at least one place lies in
    target[place[forced]] = forced.nonzero()[:, 0]
    return target


def proposal_losses(
    found: Proposals, truth: Sequence[Float[Tensor, "t 4"]]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Objectness and box loss. Objectness: mean |σ(logit) − centerness| of objects and mean σ(logit) of background, on
    equal terms; box: mean 1 − IoU of objects. 0 with gradient 0 where there are none.

    Args:
        truth: boxes of each image, of any class that has labels.
    """
    if len(truth) != len(found.logits):
        raise ValueError(f"truth has {len(truth)} entries for {len(found.logits)} images")
    middle = centres(found.anchors)[:, :2]
    hits, misses, boxes = [], [], []
    for logits, proposed, wanted in zip(found.logits, found.boxes, truth, strict=True):
        target = assign_anchors(found.anchors, wanted.to(found.anchors))
        positive = target >= 0
        box = wanted.to(proposed)[target[positive]]
        score = logits.float().sigmoid()
        hits.append((score[positive] - centerness(edge_distances(middle[positive], box))).abs())
        misses.append(score[target == -1])
        boxes.append(1 - iou(proposed[positive], box))
    return _mean(hits) + _mean(misses), _mean(boxes)


def best_proposals(
    boxes: Float[Tensor, "n 4"], logits: Float[Tensor, " n"], num: int, threshold: float | None
) -> Int[Tensor, " k"]:
    """Indices of the ``num`` most object-like boxes of one image, without near-duplicates unless threshold is None."""
    best = logits.topk(min(len(logits), num if threshold is None else 2 * num)).indices
    if threshold is None:
        return best
    return best[nms(boxes[best], logits[best], threshold)][:num]


def encode_offsets(boxes: Float[Tensor, "*n 4"], rois: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """What a head has to say to turn regions into boxes: shifts in sizes of the region, logarithms of the stretch."""
    box, roi = centres(boxes), centres(rois)
    size = roi[..., 2:].clamp(min=1e-6)
    shift = (box[..., :2] - roi[..., :2]) / size
    stretch = (box[..., 2:].clamp(min=1e-6) / size).log()
    return torch.cat([shift, stretch], -1) * box.new_tensor(DELTA_WEIGHTS)


def decode_offsets(deltas: Float[Tensor, "*n 4"], rois: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """The inverse of `encode_offsets`, cut off at the edges of the picture."""
    roi = centres(rois)
    shift, stretch = (deltas.to(roi) / roi.new_tensor(DELTA_WEIGHTS)).split(2, -1)
    middle = roi[..., :2] + shift * roi[..., 2:]
    return corners(torch.cat([middle, roi[..., 2:] * stretch.clamp(max=LARGEST_STEP).exp()], -1)).clamp(0, 1)


def _mean(parts: Sequence[Tensor]) -> Float[Tensor, ""]:
    whole = torch.cat(list(parts))
    return whole.sum() / max(len(whole), 1)
