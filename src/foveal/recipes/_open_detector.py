"""The three phases of DITO: image-level contrast, region contrast with frozen towers, detection on base boxes."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.lab import Run
from foveal.pretrain.dito import DitoObjective, DitoRegionHead, SimpleFeaturePyramid
from foveal.pretrain.dito_detector import DetectorConfig, DitoDetector, FrozenMap, LabelledBoxes
from foveal.recipes._open_models import WIDTH, BoxLevel, ImageLevel, RegionLevel
from foveal.recipes._open_scenes import BASE, OpenScenes, class_ids, scenes, words
from foveal.train import FitConfig, fit

CHANNELS, ROI = 32, 7
SETTINGS = DetectorConfig(proposals=32, rois=24, vlm_roi_size=4, detections=50)
Parts = tuple[nn.Module, DitoRegionHead]


def contrast(run: Run, steps: int) -> ImageLevel:
    """Phase 1."""
    data: OpenScenes = run.shared(scenes, 0, 3000)
    model = run.build(ImageLevel, len(run.shared(words)))
    config = FitConfig(lr=5e-3, optimizer="muon", batch_size=32, after_step=ImageLevel.clamp)
    fit(model, TensorDataset(data.pixels, data.ids), steps=run.steps(steps), config=config, on=run)
    return model


def new_parts() -> Parts:
    return SimpleFeaturePyramid(WIDTH, CHANNELS, (3, 4)), DitoRegionHead(CHANNELS, ROI, 128, WIDTH)


def regions(run: Run, first: ImageLevel, shift: int, whole: bool, steps: int) -> DitoObjective:
    """Phase 2 on a copy of the first; ``whole``: the one region is always the whole image."""
    model = copy.deepcopy(first)
    model.backbone.shift = shift
    scale, number = ((1.0, 1.0), 1) if whole else ((0.2, 1.0), 8)
    pyramid, head = run.build(new_parts)
    objective = DitoObjective(model.backbone, model.text, pyramid, head, number, scale=scale)
    objective.logit_scale.load_state_dict(model.objective.logit_scale.state_dict())
    data: OpenScenes = run.shared(scenes, 0, 3000)
    config = FitConfig(lr=3e-3, batch_size=32, after_step=RegionLevel.clamp)
    part = RegionLevel(objective, run.generator("boxes"))
    fit(part, TensorDataset(data.pixels, data.ids), steps=run.steps(steps), config=config, on=run)
    return objective


def collate(batch: list[tuple[Tensor, LabelledBoxes]]) -> tuple[Tensor, list[LabelledBoxes]]:
    return torch.stack([pixels for pixels, _ in batch]), [truth for _, truth in batch]


def detector(run: Run, backbone: nn.Module, parts: Parts, frozen: ImageLevel, steps: int) -> DitoDetector:
    """Phase 3; the second opinion is the model of phase 1, in a plain pass."""
    model = run.build(DitoDetector, copy.deepcopy(backbone), *parts, FrozenMap(frozen.backbone), CHANNELS, SETTINGS)
    data: OpenScenes = run.shared(scenes, 5_000, 800)
    part = BoxLevel(model, class_vectors(run, frozen)[: 1 + len(BASE)], run.generator("rois"))
    config = FitConfig(lr=1.5e-2, optimizer="muon", batch_size=8, collate=collate)
    pairs = list(zip(data.pixels, data.base_only(), strict=True))
    fit(part, pairs, steps=run.steps(steps), config=config, on=run)
    return model


@torch.no_grad()
def class_vectors(run: Run, model: ImageLevel) -> Tensor:
    ids = class_ids(run)
    return model.eval().text(ids, ids != 0)
