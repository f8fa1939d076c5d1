"""GRAIN's objective on plain features, for the contract: towers and decoder hand on what they are given."""

import torch
from torch import nn

from foveal.pretrain.grain import GrainDecoderOutput, GrainObjective

WIDTH, QUERIES, TARGETS = 6, 3, 4


class Given(nn.Module):
    """A text tower whose ids are already vectors, and a vision tower whose pixels are already tokens."""

    def forward(self, x, mask=None):
        return x


class Split(nn.Module):
    """A decoder whose tokens are already the answers: image and boxes and vectors of the regions."""

    def forward(self, tokens):
        regions = tokens[:, 1:]
        return GrainDecoderOutput(tokens[:, 0, :WIDTH], regions[..., :WIDTH], regions[..., WIDTH:])


def objective():
    return GrainObjective(Given(), Given(), Split())


def some_boxes(batch, n, rng):
    """Numbers that half precision holds exactly: rounding must not decide which box is for which target."""
    return torch.randint(13, 45, (batch, n, 4), generator=rng) / 64


def features(batch, seed):
    """Decoded images, captions and their mask, descriptions and their mask, boxes, and which are there."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch, 1 + QUERIES, WIDTH, generator=rng)
    boxes = some_boxes(batch, 1 + QUERIES, rng)
    caption = vectors[:, 0] + torch.randn(batch, WIDTH, generator=rng)
    desc = torch.randn(batch, TARGETS, WIDTH, generator=rng)
    target = some_boxes(batch, TARGETS, rng)
    valid = torch.rand(batch, TARGETS, generator=rng) < 0.6
    valid[:, -1] = True
    ones = torch.ones(batch, 1, dtype=torch.int64)
    many = torch.ones(batch, TARGETS, WIDTH, dtype=torch.int64)
    return torch.cat([vectors, boxes], 2), caption, ones, desc, many, target, valid


def hide(inputs):
    tokens, caption, ones, desc, many, target, valid = inputs
    hidden = ~valid[..., None]
    desc, target = desc.masked_fill(hidden, 9.0), target.masked_fill(hidden, float("nan"))
    return tokens, caption, ones, desc, many, target, valid


def without_boxes():
    """Fewer masks than descriptions."""
    tokens, caption, ones, desc, many, target, valid = features(3, 0)
    return tokens, caption, ones, desc, many, target, valid[:, :2]


def in_pixels():
    tokens, caption, ones, desc, many, target, valid = features(3, 0)
    return tokens, caption, ones, desc, many, target * 224, valid


BAD = (without_boxes, in_pixels, lambda: tuple(x[:0] for x in features(3, 0)))
