"""DITO's open-vocabulary detector: pretrained pyramid and head, proposals without classes, a frozen second opinion.

    classes = text vectors, of which row 0 is the background's
    logits  = cos(head(RoI), classes) / (0.1 · θ)            θ learned; trained on the base classes
    frozen  = cos(mean of 14×14 RoI features of the frozen model, classes) / 0.01
    score   = σ(objectness)^γ · ensemble(logits, frozen)      (`ensemble_scores`), then suppression within each class

New classes are rows of text; nothing is trained for them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.boxes import iou, nms
from foveal.nn.roi import multilevel_roi_align, roi_align
from foveal.pretrain.dito_model import DitoRegionHead
from foveal.pretrain.dito_proposals import (
    ProposalHead,
    best_proposals,
    decode_offsets,
    encode_offsets,
    proposal_losses,
)
from foveal.pretrain.dito_scores import ensemble_scores, region_text_logits
from foveal.pretrain.dito_windows import patch_map

CANDIDATES = 2000
"""Boxes of one class that enter the suppression at most; its memory grows with their square."""


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of `DitoDetector`; the defaults are the paper's.

    Raises ValueError for what makes no sense.
    """

    alpha: float = 0.35
    """Weight of the frozen model for base classes."""
    beta: float = 0.65
    """Weight of the frozen model for novel classes."""
    objectness_power: float = 3.0
    temperature: float = 0.1
    vlm_temperature: float = 0.01
    vlm_roi_size: int = 14
    proposals: int = 1000
    """Regions of each image that are classified."""
    rois: int = 512
    """Of these, regions that are trained on."""
    foreground: float = 0.25
    """Largest share of objects among them."""
    background_weight: float = 0.9
    nms: float = 0.5
    detections: int = 300

    def __post_init__(self) -> None:
        for name in ("vlm_roi_size", "proposals", "rois", "detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("alpha", "beta", "foreground", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        for name in ("temperature", "vlm_temperature", "background_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")


@dataclass
class DetectedBoxes:
    """What was found in one image, best first: x0, y0, x1, y1 in shares of it, scores, and rows of ``text``."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]


@dataclass
class LabelledBoxes:
    """Truth for one image: boxes in shares of it, and rows of ``text`` (1 or more: 0 is the background)."""

    boxes: Float[Tensor, "t 4"]
    labels: Int[Tensor, " t"]


@dataclass
class DetectorOutput:
    """The sum of the four losses, and each of them."""

    loss: Float[Tensor, ""]
    classes: Float[Tensor, ""]
    boxes: Float[Tensor, ""]
    objectness: Float[Tensor, ""]
    proposals: Float[Tensor, ""]


class FrozenMap(nn.Module):
    """The pretrained vision model as the second opinion: its features of each patch in the space of the text.

    Args:
        vision: as `DitoObjective`'s backbone.
        projection: to the width of the text, such as ``CLIPModel.visual_projection``; None where it is that already.
    """

    def __init__(self, vision: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.vision, self.projection = vision, projection or nn.Identity()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e h w"]:
        return self.projection(patch_map(self.vision, images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DitoDetector(nn.Module):
    """Images and class texts -> boxes. Train it with `losses` on base classes; ``forward`` finds any class.

    Args:
        backbone, pyramid, head: those of `DitoObjective`; all of them learn here.
        vlm: images -> (B, E, H, W) in the space of the text, such as `FrozenMap` of the pretrained backbone. It is
            copied and frozen: were it fine-tuned along, novel classes would be lost.
        channels: of the pyramid's maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pyramid: nn.Module,
        head: DitoRegionHead,
        vlm: nn.Module,
        channels: int,
        config: DetectorConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.head = backbone, pyramid, head
        self.vlm = copy.deepcopy(vlm).requires_grad_(False).eval()
        self.proposals = ProposalHead(channels)
        self.theta = nn.Parameter(torch.ones(()))
        self.config = config or DetectorConfig()
        for module in (backbone, pyramid, head):
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> "DitoDetector":
        """As usual, but the frozen model stays in evaluation mode."""
        super().train(mode)
        self.vlm.eval()
        return self

    def parameter_groups(self, lr: float, backbone_scale: float = 0.6) -> list[dict[str, Any]]:
        """For an optimiser: the backbone learns more slowly than the detector's own parts."""
        backbone = list(self.backbone.parameters())
        known = {id(parameter) for parameter in backbone}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [{"params": rest, "lr": lr}, {"params": backbone, "lr": lr * backbone_scale}]

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 3 h w"], text: Float[Tensor, "k e"], base: Bool[Tensor, " k"] | None = None
    ) -> list[DetectedBoxes]:
        """What is in each image.

        Args:
            text: vectors of the classes, the background's first.
            base: True for classes that were trained with boxes; None: none was.

        Raises ValueError for fewer than two rows of text, for shapes that do not fit, and for images or text with NaN.
        """
        _check_text(text)
        config = self.config
        maps = self.pyramid(patch_map(self.backbone, images))
        found = self.proposals(maps)
        logits, place = found.logits.float().topk(min(config.proposals, found.logits.shape[1]), 1)
        rois = found.boxes.gather(1, place[..., None].expand(-1, -1, 4))
        answer = self.head(multilevel_roi_align(maps, rois, self.head.roi_size))
        detector = region_text_logits(answer.embed, text, config.temperature * self.theta)
        seen = roi_align(self.vlm(images), rois, config.vlm_roi_size).mean((3, 4))
        frozen = region_text_logits(seen, text, config.vlm_temperature)
        weights = (config.alpha, config.beta, logits.sigmoid(), config.objectness_power)
        scores = ensemble_scores(detector, frozen, base, *weights)
        boxes = decode_offsets(answer.box, rois)
        return [self._kept(one, score) for one, score in zip(boxes, scores, strict=True)]

    def losses(
        self,
        images: Float[Tensor, "b 3 h w"],
        text: Float[Tensor, "k e"],
        truth: Sequence[LabelledBoxes],
        generator: torch.Generator,
    ) -> DetectorOutput:
        """Training on the classes that have boxes.

        Args:
            text: as for ``forward``, of these classes alone.
            truth: of each image; without boxes it is all background.
            generator: draws the regions that are trained on.

        Raises ValueError for labels that are no rows of text, or the background's.
        """
        _check_text(text)
        _check_truth(truth, len(images), len(text))
        maps = self.pyramid(patch_map(self.backbone, images))
        found = self.proposals(maps)
        objectness, proposed = proposal_losses(found, [one.boxes for one in truth])
        features, rois, targets, labels = [], [], [], []
        for image, one in enumerate(truth):
            regions, wanted, classes = self._sampled(found.boxes[image], found.logits[image], one, generator)
            own = {level: one_map[image : image + 1] for level, one_map in maps.items()}
            features.append(multilevel_roi_align(own, regions[None], self.head.roi_size))
            rois.append(regions)
            targets.append(wanted)
            labels.append(classes)
        answer = self.head(torch.cat(features, 1))
        logits = region_text_logits(answer.embed, text, self.config.temperature * self.theta)[0]
        label, objects = torch.cat(labels), torch.cat(labels) > 0
        weight = torch.ones_like(logits[0])
        weight[0] = self.config.background_weight
        classes = F.cross_entropy(logits, label, weight)
        deltas = encode_offsets(torch.cat(targets)[objects], torch.cat(rois)[objects])
        boxes = F.smooth_l1_loss(answer.box[0][objects].float(), deltas, reduction="sum") / len(label)
        loss = classes + boxes + objectness + proposed
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()}: images, text or weights hold NaN or infinity")
        return DetectorOutput(loss, classes, boxes, objectness, proposed)

    @torch.no_grad()
    def _sampled(
        self, boxes: Float[Tensor, "n 4"], logits: Float[Tensor, " n"], truth: LabelledBoxes, generator: torch.Generator
    ) -> tuple[Float[Tensor, "s 4"], Float[Tensor, "s 4"], Int[Tensor, " s"]]:
        """Regions to train on, the box each is for and its class; objects are regions that overlap one by half."""
        wanted, classes = truth.boxes.to(boxes), truth.labels.to(boxes.device)
        best = best_proposals(boxes, logits, self.config.proposals, threshold=0.7)
        regions = torch.cat([boxes[best], wanted])
        if len(wanted) == 0:
            target, label = torch.zeros_like(regions), classes.new_zeros(len(regions))
        else:
            overlap, index = iou(regions[:, None], wanted).max(1)
            target, label = wanted[index], classes[index].where(overlap >= 0.5, 0)
        order = torch.randperm(len(regions), generator=generator, device=generator.device).to(boxes.device)
        objects = order[label[order] > 0][: max(1, round(self.config.rois * self.config.foreground))]
        chosen = torch.cat([objects, order[label[order] == 0][: self.config.rois - len(objects)]])
        return regions[chosen], target[chosen], label[chosen]

    def _kept(self, boxes: Float[Tensor, "r 4"], scores: Float[Tensor, "r k"]) -> DetectedBoxes:
        """Suppression within each class; the background is dropped."""
        regions, classes = scores[:, 1:].shape
        best, place = scores[:, 1:].flatten().topk(regions * classes)
        region, label = place // classes, place % classes + 1
        kept, end = torch.zeros_like(label, dtype=torch.bool), len(label)
        for ranks in label.argsort(stable=True).view(classes, regions)[:, :CANDIDATES]:
            some = ranks[ranks < end]
            kept[some[nms(boxes[region[some]], best[some], self.config.nms)]] = True
            chosen = kept[:end].nonzero()[: self.config.detections, 0]
            if len(chosen) == self.config.detections:
                end = int(chosen[-1]) + 1  # what is worse can neither be one of the best nor suppress one
        return DetectedBoxes(boxes[region[chosen]], best[chosen], label[chosen])


def _check_text(text: Tensor) -> None:
    if text.ndim != 2 or len(text) < 2:
        raise ValueError(f"text {tuple(text.shape)} must be (K, E): the background's vector and at least one class")


def _check_truth(truth: Sequence[LabelledBoxes], images: int, classes: int) -> None:
    if len(truth) != images:
        raise ValueError(f"truth has {len(truth)} entries for {images} images")
    for one in truth:
        if one.boxes.ndim != 2 or one.boxes.shape[1] != 4 or one.labels.shape != one.boxes.shape[:1]:
            shapes = f"boxes {tuple(one.boxes.shape)}, labels {tuple(one.labels.shape)}"
            raise ValueError(f"truth has {shapes}: must be (T, 4) and (T,)")
        if len(one.labels) and not 1 <= int(one.labels.min()) <= int(one.labels.max()) < classes:
            raise ValueError(f"truth has labels beyond 1 to {classes - 1}, the rows of text after the background")
        if len(one.boxes) and not 0 <= float(one.boxes.min()) <= float(one.boxes.max()) <= 1:
            raise ValueError("truth has boxes outside [0, 1]: give x0, y0, x1, y1 in shares of the picture")
