"""What CLOC's objective is tested with: towers of a few numbers, and batches that make them work."""

import torch
from torch import Tensor, nn

from foveal.pretrain.cloc import ClocObjective

Inputs = tuple[Tensor, ...]
DIM, EMBED, WORDS, LENGTH, REGIONS = 8, 6, 11, 5, 4


class Eyes(nn.Module):
    """8 × 8 pixels to four tokens and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 4, stride=4)
        self.places = nn.Parameter(0.3 * torch.randn(4, DIM))

    def forward(self, images):
        tokens = self.patches(images.to(self.patches.weight.dtype)).flatten(2).mT + self.places
        return tokens, tokens.tanh().mean(1)


class Reader(nn.Module):
    """The mean embedding of the real words: NaN for a text without any."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(WORDS, DIM), nn.Linear(DIM, EMBED)

    def forward(self, ids, mask):
        weights = mask.to(self.out.weight.dtype)[..., None]
        return self.out((self.words(ids) * weights).sum(-2) / weights.sum(-2))


def objective(**options: object) -> ClocObjective:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClocObjective(Eyes(), Reader(), DIM, EMBED, **options)


def at_the_prompt() -> ClocObjective:
    return objective(pool="prompt", box_loss="l1_giou", num_regions=2, lambda_region=0.5, lambda_ground=2.0)


def batch(size: int, seed: int) -> Inputs:
    """All that forward takes; the regions of the last sample are all valid."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=rng)
    ids = [torch.randint(WORDS, (size, *more, LENGTH), generator=rng) for more in ((), (REGIONS,))]
    masks = [torch.rand(x.shape, generator=rng) < 0.7 for x in ids]
    for mask in masks:
        mask[..., 0] = True
    boxes = torch.rand(size, REGIONS, 2, 2, generator=rng).sort(2).values.flatten(2)
    valid = torch.rand(size, REGIONS, generator=rng) < 0.6
    valid[-1] = True
    masks[1] &= valid[..., None]
    return images, ids[0], masks[0], ids[1], masks[1], boxes, valid


def hide(inputs: Inputs) -> Inputs:
    """Other words, and boxes that are none, where regions are not valid."""
    images, caption_ids, caption_mask, ids, mask, boxes, valid = inputs
    boxes = torch.where(valid[..., None], boxes, torch.nan)
    return images, caption_ids, caption_mask, torch.where(valid[..., None], ids, 3), mask, boxes, valid


def _bad(place: int, value: Tensor) -> Inputs:
    inputs = list(batch(3, 0))
    inputs[place] = value
    return tuple(inputs)


BAD = (
    lambda: _bad(5, 8 * batch(3, 0)[5]),
    lambda: _bad(5, batch(3, 0)[5].flip(-1)),
    lambda: _bad(5, batch(3, 0)[5][:, :3]),
    lambda: _bad(6, batch(3, 0)[6].long()),
    lambda: _bad(6, batch(3, 0)[6][:2]),
    lambda: _bad(4, batch(3, 0)[4][..., :2]),
    lambda: _bad(3, batch(3, 0)[3][:, 0]),
)
