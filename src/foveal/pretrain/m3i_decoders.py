"""What M3I puts on the encoder for the time of pre-training, and how it cuts images into patches.

Places are (x, y, w, h): centre and sides of a patch in units of view 1, whose corners are (0, 0) and (1, 1). A patch
of view 2 has its place there too, which is the relative position that the decoder gets; a mirrored view has w < 0.

See `foveal.pretrain.m3i`.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveal.nn.attention import MultiHeadAttention, padding_mask
from foveal.nn.transformer import Transformer

Grid = tuple[int, int]
FREQUENCIES = 6


def patch_tokens(encoder: nn.Module, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n d"], Grid]:
    """Tokens of the patches row by row, without class and register tokens, and the grid (rows, columns).

    Args:
        encoder: `ViTModel`, `Dinov2Model`, `CLIPVisionModel`, `ConvNextModel` … (their ``last_hidden_state``), or a
            module that returns tokens (B, T, D) or a map (B, D, h, w). A ``patch_size`` that it or its config has
            fixes the grid; else T, or T − 1, must be a square number.
    """
    parameter = next(encoder.parameters(), images)
    output: Any = encoder(images.to(parameter.dtype))
    states = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor) or states.ndim not in (3, 4):
        found = tuple(states.shape) if isinstance(states, Tensor) else type(output).__name__
        raise ValueError(f"encoder returned {found}: must be (B, T, D) or (B, D, h, w), or have a last_hidden_state")
    if states.ndim == 4:
        return states.flatten(2).mT, (states.shape[2], states.shape[3])
    grid = _grid(encoder, images, states.shape[1])
    return states[:, states.shape[1] - grid[0] * grid[1] :], grid


def patch_size(encoder: nn.Module) -> int | None:
    """The side of a patch in pixels, if the encoder or its config says it."""
    size = getattr(getattr(encoder, "config", None), "patch_size", None) or getattr(encoder, "patch_size", None)
    return size if isinstance(size, int) else None


def cell_size(encoder: nn.Module) -> int | None:
    """The side in pixels of what `patch_tokens` gives one token for, if the encoder or its config says enough.

    Encoders that halve their map, as `ConvNextModel` does, have larger cells than the ``patch_size`` they begin with:
    where the config has an ``image_size`` the cells of such an image are counted.
    """
    size = getattr(getattr(encoder, "config", None), "image_size", None)
    if not isinstance(size, int):
        return patch_size(encoder)
    blank = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        return size // patch_tokens(encoder, blank.to(next(encoder.parameters(), blank).device))[1][0]


def _grid(encoder: nn.Module, images: Tensor, tokens: int) -> Grid:
    size = patch_size(encoder)
    if size is not None:
        grid = images.shape[2] // size, images.shape[3] // size
        if not 0 < grid[0] * grid[1] <= tokens:
            raise ValueError(f"encoder returned {tokens} tokens: must be {grid[0]} × {grid[1]} patches of {size} px")
        return grid
    side = next((math.isqrt(n) for n in (tokens, tokens - 1) if n > 0 and math.isqrt(n) ** 2 == n), None)
    if side is None:
        raise ValueError(f"encoder returned {tokens} tokens, not a square number: give it an integer patch_size")
    return side, side


def to_patches(images: Float[Tensor, "b c h w"], grid: Grid) -> Float[Tensor, "b n p"]:
    """Pixels of each patch, row by row."""
    if any(side % cells for side, cells in zip(images.shape[2:], grid, strict=True)):
        raise ValueError(f"images {tuple(images.shape)}: sides must be multiples of the grid {grid}, resize them")
    rows = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # b c gh ph gw pw
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Float[Tensor, "b n p"], grid: Grid, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """The inverse of `to_patches` for images of ``size`` (height, width)."""
    height, width = size[0] // grid[0], size[1] // grid[1]
    cells = patches.unflatten(1, grid).unflatten(3, (-1, height, width))  # b gh gw c ph pw
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(grid: Grid, box: Float[Tensor, "b 4"]) -> Float[Tensor, "b n 4"]:
    """Places of the patches of a view that lies at ``box`` (x1, y1, x2, y2) in units of view 1; x1 > x2: mirrored."""
    rows, columns = ((torch.arange(n, device=box.device) + 0.5) / n for n in grid)
    y, x = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    sides = box[:, 2:] - box[:, :2]
    centres = box[:, None, :2] + sides[:, None] * torch.stack([x, y], 1)
    return torch.cat([centres, (sides / box.new_tensor([grid[1], grid[0]]))[:, None].expand_as(centres)], 2)


def visible_at(where: Float[Tensor, "b n 4"], visible: Bool[Tensor, "b m"], grid: Grid) -> Bool[Tensor, "b n"]:
    """Is the centre of each place inside a patch of view 1 that is visible?"""
    x, y = where[..., 0], where[..., 1]
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    cell = (y * grid[0]).floor().clamp(0, grid[0] - 1) * grid[1] + (x * grid[1]).floor().clamp(0, grid[1] - 1)
    return inside & visible.gather(1, cell.long())


class DenseDecoder(nn.Module):
    """Visible tokens of an image -> features at every place of view 1, and of view 2."""

    def __init__(self, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.place = nn.Linear(8 * FREQUENCIES, dim)
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.transformer = Transformer(dim, layers, heads)
        self.norm = nn.LayerNorm(dim)
        self.intra, self.inter = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        where: Float[Tensor, "b n 4"],
        other: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"] | None]:
        """Predictions at the tokens' own places, and at the places ``other`` if given."""
        hidden, length = self.hidden(tokens, where, other), tokens.shape[1]
        return self.intra(hidden[:, :length]), None if other is None else self.inter(hidden[:, length:])

    def hidden(
        self,
        tokens: Float[Tensor, "b n d"],
        where: Float[Tensor, "b n 4"],
        other: Float[Tensor, "b m 4"] | None = None,
    ) -> Float[Tensor, "b n_plus_m d"]:
        """What the predictions are read from."""
        sequence = tokens + self._embed(where)
        if other is not None:
            sequence = torch.cat([sequence, self.query + self._embed(other)], 1)
        return self.norm(self.transformer(sequence))

    def _embed(self, where: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        octaves = math.pi / 2 * 2.0 ** torch.arange(FREQUENCIES, device=where.device)
        angles = (where[..., None] * octaves).flatten(2)
        return self.place(torch.cat([angles.sin(), angles.cos()], 2).to(self.place.weight.dtype))


class PoolDecoder(nn.Module):
    """Visible tokens of an image -> one vector: a learned query looks at them."""

    def __init__(self, dim: int, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.attention = MultiHeadAttention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, embed_dim)

    def forward(
        self, tokens: Float[Tensor, "b n d"], visible: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b e"]:
        """``visible`` None: all tokens are."""
        query = self.query.repeat(len(tokens), 1, 1)  # torch's FLOP counter takes no view of it
        mask = None if visible is None else padding_mask(visible)
        return self.proj(self.norm(self.attention(query, tokens, mask=mask)[:, 0]))
