"""What each of DITO's three phases trains at 64 px, as one module each."""

import torch
from torch import Tensor, nn

from foveal.nn.text import TextTransformer
from foveal.pretrain.clip import CLIPObjective
from foveal.pretrain.dito import DitoObjective, WindowViT
from foveal.pretrain.dito_detector import DitoDetector, LabelledBoxes
from foveal.recipes._open_scenes import LONGEST, SIZE

WIDTH = 64


class ImageLevel(nn.Module):
    """Phase 1: the mean of all patches against the caption."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.backbone = WindowViT(SIZE, 8, WIDTH, 3, 4, grid=2)
        self.text = TextTransformer(LONGEST, vocabulary, WIDTH, 2, 4, output_dim=WIDTH)
        self.objective = CLIPObjective()

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.objective(self.backbone(pixels).mean((1, 2)), self.text(ids, ids != 0)).loss

    def clamp(self) -> None:
        self.objective.logit_scale.clamp_()


class RegionLevel(nn.Module):
    """Phase 2 with the numbers that draw its boxes."""

    def __init__(self, objective: DitoObjective, generator: torch.Generator) -> None:
        super().__init__()
        self.objective, self.generator = objective, generator

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.objective(pixels, ids, ids != 0, self.generator).loss

    def clamp(self) -> None:
        self.objective.logit_scale.clamp_()


class BoxLevel(nn.Module):
    """Phase 3: the detector on base boxes."""

    def __init__(self, detector: DitoDetector, text: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.detector, self.generator = detector, generator
        self.register_buffer("text", text)

    def forward(self, pixels: Tensor, truth: list[LabelledBoxes]) -> Tensor:
        return self.detector.losses(pixels, self.get_buffer("text"), truth, self.generator).loss
