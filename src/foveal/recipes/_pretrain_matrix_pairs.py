"""Texts and pictures as UNITER reads them in the matrix, the patches of a picture as its regions."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.pretrain.uniter import region_position_features
from foveal.recipes import _listed as data

CLS, MASK = len(data.WORDS), len(data.WORDS) + 1


def paired(
    pixels: Float[Tensor, "b 3 s s"],
    ids: Int[Tensor, "b l"],
    mask: Tensor,
    within: Bool[Tensor, "b p"] | None = None,
) -> dict[str, Tensor]:
    """As many texts as pictures, of which only the patches ``within`` are seen."""
    folded = pixels.unfold(2, data.PATCH, data.PATCH).unfold(3, data.PATCH, data.PATCH)
    features = folded.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return {
        "input_ids": torch.cat([torch.full((len(ids), 1), CLS), ids], 1),
        "text_mask": torch.cat([torch.ones(len(ids), 1), mask], 1).bool(),
        "region_features": features,
        "region_positions": region_position_features(
            data.CELLS.expand(len(pixels), -1, -1), torch.ones(len(pixels), 2)
        ),
        "region_mask": torch.ones(features.shape[:2], dtype=torch.bool) if within is None else within,
    }
