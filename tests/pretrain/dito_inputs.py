"""DITO's loss on region vectors, for the contract."""

import torch
from torch import nn

from foveal.pretrain.base import LogitScale
from foveal.pretrain.dito import region_contrast

LEVELS, REGIONS, WIDTH = 2, 4, 8


class RegionContrast(nn.Module):
    """The loss with its learned scale; samples come first, as the contract wants them."""

    def __init__(self):
        super().__init__()
        self.logit_scale = LogitScale()

    def forward(self, regions, text, mask):
        return region_contrast(regions.transpose(0, 1), text, self.logit_scale(), mask)


def regions(batch, seed):
    """Region vectors (B, levels, R, D), captions, and which regions count; the last one always does."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch, LEVELS, REGIONS, WIDTH, generator=rng)
    text = vectors.amax((1, 2)) + torch.randn(batch, WIDTH, generator=rng)
    mask = torch.rand(batch, REGIONS, generator=rng) < 0.6
    mask[:, -1] = True
    return vectors, text, mask


def hide(inputs):
    vectors, text, mask = inputs
    return vectors.masked_fill(~mask[:, None, :, None], float("inf")), text, mask


BAD = (
    lambda: (torch.ones(3, 4, 8), torch.ones(3, 8), torch.ones(3, 4)),
    lambda: (torch.ones(3, 2, 4, 8), torch.ones(2, 8), torch.ones(3, 4)),
    lambda: (torch.ones(3, 2, 4, 8), torch.ones(3, 7), torch.ones(3, 4)),
    lambda: (torch.ones(3, 2, 4, 8), torch.ones(3, 8), torch.ones(3, 5)),
    lambda: (torch.ones(3, 2, 0, 8), torch.ones(3, 8), torch.ones(3, 0)),
    lambda: (torch.ones(0, 2, 4, 8), torch.ones(0, 8), torch.ones(0, 4)),
)
