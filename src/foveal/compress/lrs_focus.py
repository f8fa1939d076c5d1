"""From coarse to fine: which tiles of the pyramid `lrs` fetches, and which tokens stay."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.base import keep_count
from foveal.compress.lrs_focus_pyramid import LazyPyramid, PyramidLevel
from foveal.compress.lrs_focus_tokens import (
    best_places,
    check_share,
    crop_padding,
    scatter_tiles,
    select_tokens,
    vote_tiles,
)


@dataclass(frozen=True)
class FocusResult:
    """What a pass from coarse to fine came to."""

    tokens: Float[Tensor, "m d"]
    """The kept tokens of the last level, newlines included, in reading order."""
    level: int
    """The last level: its place in the plan."""
    tiles: list[Int[Tensor, "k 2"]]
    """For each level from 1 on, the (row, column) of the tiles that were encoded."""
    tiles_encoded: int
    """All of them; the thumbnail comes on top."""
    index: Int[Tensor, " m"]
    """Where ``tokens`` stand among all places of the last level."""


@dataclass(frozen=True)
class LevelTokens:
    """The n places of a level in reading order, of which only those with a token take memory."""

    features: Float[Tensor, "v d"]
    """Tokens of the fetched tiles, cropped, and newlines."""
    valid: Bool[Tensor, " n"]
    """Which of the n places have a token."""
    is_newline: Bool[Tensor, " n"]
    hw: tuple[int, int]
    """Rows and columns of places, newlines included."""

    def spread(self, values: Tensor, empty: float) -> Tensor:
        """Values of the tokens at all n places, ``empty`` where there is no token."""
        return values.new_full((len(self.valid), *values.shape[1:]), empty).index_put_((self.valid,), values)


def lay_out(
    features: Float[Tensor, "k n d"],
    positions: Int[Tensor, "k 2"],
    level: PyramidLevel,
    side: int,
    newline: Float[Tensor, " d"] | None,
) -> LevelTokens:
    """The tokens of some tiles of a level, without those of the padding, a newline after each row."""
    table = features.reshape(-1, features.shape[-1])
    numbers = torch.arange(1, len(table) + 1, device=features.device).view(len(features), -1, 1)
    canvas = crop_padding(scatter_tiles(numbers, positions, level.grid_hw, side)[0][..., 0], level.resized_hw)
    if newline is not None:  # number 0 is no token, numbers beyond the table are the newline
        canvas = torch.cat([canvas, canvas.new_full((len(canvas), 1), len(table) + 1)], 1)
        table = torch.cat([table, newline.to(table)[None]])
    places = canvas.flatten()
    valid = places > 0
    rows, columns = canvas.shape
    return LevelTokens(table[places[valid] - 1], valid, places == len(features) * side**2 + 1, (rows, columns))


def coarse_to_fine(
    pyramid: Sequence[Float[Tensor, "gh gw 3 t t"]] | LazyPyramid,
    plan: Sequence[PyramidLevel],
    encode: Callable[[Float[Tensor, "k 3 t t"]], Float[Tensor, "k n d"]],
    score: Callable[[Float[Tensor, "n d"], Bool[Tensor, " n"], int], Float[Tensor, " n"]],
    side: int,
    newline: Float[Tensor, " d"] | None = None,
    keep_ratio: float = 0.25,
    max_level: int = 2,
    max_tiles: int | None = None,
) -> FocusResult:
    """Encode the first level, fetch of each next one the tiles that the best tokens vote for, prune at the last.

    Args:
        pyramid: the levels of ``plan``, from `build_pyramid` or read from disk.
        encode: tiles to ``side``² tokens each.
        score: (tokens, valid, level) to one score for each; where ``valid`` is False tokens are zeros and the score
            does not matter.
        newline: token that closes every row.
        keep_ratio: share of the valid tokens that vote, and that stay in the end.
        max_level: last level to go to, or the finest there is.
        max_tiles: fetch no more than this many tiles of a level after the first; None for all that got a vote.

    Memory grows with the tiles that are fetched, and by D numbers for each place of the last level; `LargeImageLlava`
    does without the latter.

    Where all tiles with a vote lie in a strip of the picture thinner than a token, the level before is the last.

    Raises ValueError for a share outside (0, 1], ``max_level`` or ``max_tiles`` below 1, a plan that is not the
    pyramid's, and outputs of ``encode`` and ``score`` that do not fit.
    """

    def dense(tokens: LevelTokens, level: int) -> Tensor:
        scores = score(tokens.spread(tokens.features, 0), tokens.valid, level)
        if scores.shape != tokens.valid.shape:
            raise ValueError(f"score gave {tuple(scores.shape)}, not one number for each of {len(tokens.valid)} tokens")
        return scores[tokens.valid]

    return focus(pyramid, plan, encode, dense, side, newline, keep_ratio, max_level, max_tiles)


def focus(
    pyramid: Sequence[Float[Tensor, "gh gw 3 t t"]] | LazyPyramid,
    plan: Sequence[PyramidLevel],
    encode: Callable[[Float[Tensor, "k 3 t t"]], Float[Tensor, "k n d"]],
    score: Callable[[LevelTokens, int], Tensor],
    side: int,
    newline: Float[Tensor, " d"] | None,
    keep_ratio: float,
    max_level: int,
    max_tiles: int | None,
) -> FocusResult:
    """`coarse_to_fine`, with a ``score`` of the tokens that there are: (tokens, level) to one number for each."""
    check_share(keep_ratio)
    check_reach(max_level, max_tiles)
    if len(plan) < 2 or len(pyramid) < min(max_level + 1, len(plan)):
        raise ValueError(
            f"plan has {len(plan)} levels, pyramid {len(pyramid)}: give both of one picture, see pyramid_plan"
        )
    last = min(max_level, len(plan) - 1)
    positions = every_tile(plan[1])
    fetched = []
    for level in range(1, last + 1):
        fetched.append(positions)
        features = encode_tiles(pyramid, plan, level, positions, encode, side)
        tokens = lay_out(features, positions, plan[level], side, newline)
        scores = score(tokens, level)
        spread = tokens.spread(scores, -math.inf)
        if level < last:
            voters = _voters(spread, tokens, keep_ratio)
            positions = vote_tiles(voters, tokens.hw, plan[level + 1].grid_hw, max_tiles=max_tiles).cpu()
            if not _have_tokens(positions, plan[level + 1], side):
                break
    row_length = None if newline is None else tokens.hw[1]
    index = select_tokens(spread, keep_ratio, row_length, tokens.valid)
    number = tokens.valid.cumsum(0) - 1
    return FocusResult(tokens.features[number[index]], level, fetched, sum(len(part) for part in fetched), index)


def check_reach(max_level: int, max_tiles: int | None) -> None:
    """Raise ValueError for a last level or a number of tiles below 1."""
    if max_level < 1 or (max_tiles is not None and max_tiles < 1):
        raise ValueError(f"max_level={max_level}, max_tiles={max_tiles}: both must be at least 1")


def _have_tokens(positions: Int[Tensor, "k 2"], level: PyramidLevel, side: int) -> bool:
    """Is any of the tiles more than padding to the crop, which cuts to whole tokens?"""
    rows, columns = (side * tiles for tiles in level.grid_hw)
    height, width = crop_padding(torch.empty(()).expand(rows, columns), level.resized_hw).shape
    return bool(((positions[:, 0] * side < height) & (positions[:, 1] * side < width)).any())


def every_tile(level: PyramidLevel) -> Int[Tensor, "k 2"]:
    """(row, column) of all tiles, in reading order."""
    rows, columns = level.grid_hw
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def encode_tiles(
    pyramid: Sequence[Tensor] | LazyPyramid,
    plan: Sequence[PyramidLevel],
    level: int,
    positions: Int[Tensor, "k 2"],
    encode: Callable[[Tensor], Tensor],
    side: int,
) -> Float[Tensor, "k n d"]:
    """Features of the tiles at ``positions`` of a level."""
    tiles = pyramid[level]
    if tuple(tiles.shape[:2]) != plan[level].grid_hw:
        raise ValueError(f"pyramid[{level}] has {tuple(tiles.shape[:2])} tiles, the plan {plan[level].grid_hw}")
    features = encode(tiles[positions[:, 0], positions[:, 1]])
    if features.ndim != 3 or features.shape[:2] != (len(positions), side**2):
        raise ValueError(f"encode gave {tuple(features.shape)} for {len(positions)} tiles; want (k, {side**2}, D)")
    return features


def _voters(scores: Float[Tensor, " n"], tokens: LevelTokens, keep_ratio: float) -> Int[Tensor, " k"]:
    """The best share of the tokens that are no newline, at least one."""
    places = (tokens.valid & ~tokens.is_newline).nonzero()[:, 0]
    return best_places(scores, places, max(1, keep_count(len(places), keep_ratio)))
