"""What a pretrained model points at, and what a detector finds."""

import torch

from foveal.evaluate.box_ap import Boxes, box_ap
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.nn.roi import roi_align
from foveal.pretrain.dito import DitoObjective
from foveal.pretrain.dito_detector import DitoDetector
from foveal.pretrain.dito_windows import patch_map
from foveal.recipes._open_detector import ROI, class_vectors
from foveal.recipes._open_models import ImageLevel
from foveal.recipes._open_scenes import BASE, NOUNS, OpenScenes, scenes


def precision(run: Run, model: DitoDetector, frozen: ImageLevel) -> dict[str, float]:
    """AP50 of novel and base nouns on new scenes."""
    data: OpenScenes = run.shared(scenes, 10_000, 200)
    base = torch.arange(1 + len(NOUNS)) <= len(BASE)
    found = model.eval()(data.pixels, class_vectors(run, frozen), base)
    truth = [Boxes(one.boxes.numpy(), one.labels.numpy()) for one in data.truth]
    boxes = [Boxes(one.boxes.numpy(), one.labels.numpy(), one.scores.numpy()) for one in found]
    groups = {"novel_ap50": range(1 + len(BASE), 1 + len(NOUNS)), "base_ap50": range(1, 1 + len(BASE))}
    return {name: one.ap50 for name, one in box_ap(truth, boxes, groups).items()}


@torch.no_grad()
def pointing(run: Run, model: ImageLevel, objective: DitoObjective | None) -> float:
    """How often the place that fits a noun best lies in its box, in percent: patches, or boxes around them."""
    data: OpenScenes = run.shared(scenes, 10_000, 200)
    text = unit_rows(class_vectors(run, model))
    grid = (torch.arange(8) + 0.5) / 8
    places = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).flatten(0, 1)
    if objective is None:
        scores = unit_rows(model.backbone(data.pixels).flatten(1, 2)) @ text.T
    else:
        maps = objective.pyramid(patch_map(objective.eval().backbone, data.pixels)).values()
        boxes = torch.cat([places - 0.15, places + 0.15], 1).clamp(0, 1).expand(len(data.pixels), -1, -1)
        seen = [unit_rows(objective.head(roi_align(one, boxes, ROI)).embed) @ text.T for one in maps]
        scores = torch.stack(seen).mean(0)
    hits = []
    for row, one in zip(scores, data.truth, strict=True):
        best = places[row.argmax(0)[one.labels]]
        hits.append(((best >= one.boxes[:, :2]) & (best <= one.boxes[:, 2:])).all(1))
    return 100 * torch.cat(hits).float().mean().item()
