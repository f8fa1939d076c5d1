"""What DreamLIP's objective is tested with."""

import torch
from torch import Tensor

from foveal.pretrain.dreamlip import DreamLIPObjective

Inputs = tuple[Tensor, ...]
TEXTS, PATCHES, WIDTH, PATCH_WIDTH = 3, 6, 8, 5


def objective(**options: object) -> DreamLIPObjective:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DreamLIPObjective(patch_dim=PATCH_WIDTH, embed_dim=WIDTH, **options)


def batch_negatives() -> DreamLIPObjective:
    return objective(negatives="batch", threshold=None, mpcl_weight=0.7, grouping_weight=1.3)


def features(batch: int, seed: int) -> Inputs:
    """Images, patches and texts; the texts of an image resemble it a little."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, WIDTH, generator=rng)
    texts = image[:, None] + torch.randn(batch, TEXTS, WIDTH, generator=rng)
    return image, torch.randn(batch, PATCHES, PATCH_WIDTH, generator=rng), texts


BAD = (
    lambda: (torch.ones(3, 8), torch.ones(3, 6, 5), torch.ones(2, 3, 8)),
    lambda: (torch.ones(3, 8), torch.ones(2, 6, 5), torch.ones(3, 3, 8)),
    lambda: (torch.ones(3, 8), torch.ones(3, 6, 8), torch.ones(3, 3, 8)),
    lambda: (torch.ones(3, 7), torch.ones(3, 6, 5), torch.ones(3, 3, 7)),
    lambda: (torch.ones(3, 8), torch.ones(3, 0, 5), torch.ones(3, 3, 8)),
    lambda: (torch.ones(3, 8), torch.ones(3, 6, 5), torch.ones(3, 8)),
)
