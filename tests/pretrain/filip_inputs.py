"""What FILIP's objective is tested with."""

import torch
from torch import Tensor, nn

from foveal.pretrain.filip import FILIPObjective, filip_loss

Inputs = tuple[Tensor, ...]
PATCHES, WORDS, IMAGE_DIM, TEXT_DIM = 5, 4, 6, 7


def objective(**options: object) -> FILIPObjective:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FILIPObjective(IMAGE_DIM, TEXT_DIM, 8, **options)


def tokens(batch: int, seed: int) -> Inputs:
    """Image tokens, text tokens, text mask, image mask; the last sample is without padding."""
    rng = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(batch, n, d, generator=rng) for n, d in ((PATCHES, IMAGE_DIM), (WORDS, TEXT_DIM)))
    masks = [torch.rand(batch, n, generator=rng) < 0.6 for n in (WORDS, PATCHES)]
    for mask in masks:
        mask[:, 0] = mask[-1] = True
    return image, text, *masks


def hide(inputs: Inputs) -> Inputs:
    """Other content in the padding, NaN in some of it."""
    image, text, text_mask, image_mask = inputs
    text = torch.where(text_mask[..., None], text, 100.0)
    return torch.where(image_mask[..., None], image, torch.nan), text, text_mask, image_mask


def chunked(model: nn.Module, inputs: Inputs, size: int) -> Tensor:
    image, text, text_mask, image_mask = inputs
    projected = model.image_projection(image), model.text_projection(text)
    masks = {"image_mask": image_mask, "text_mask": text_mask}
    return filip_loss(*projected, model.logit_scale(), **masks, chunk_size=size).loss


def _bad(place: int, value: Tensor) -> Inputs:
    inputs = list(tokens(3, 0))
    inputs[place] = value
    return tuple(inputs)


BAD = (
    lambda: _bad(0, torch.ones(3, 5)),
    lambda: _bad(0, torch.ones(4, 5, 6)),
    lambda: _bad(1, torch.ones(3, 4, 6)),
    lambda: _bad(1, torch.ones(3, 0, 7)),
    lambda: _bad(2, torch.ones(3, 4, dtype=torch.long)),
    lambda: _bad(2, torch.zeros(3, 4, dtype=torch.bool)),
    lambda: _bad(3, torch.ones(3, 4, dtype=torch.bool)),
)
