"""The rules of `lrs` for tokens: who is looked at, who stays, which tiles they vote for, where tiles lie.

A level's tokens form a grid in reading order. Where the model has an ``image_newline``, one closes every row; a row of
w tokens then has w + 1.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from foveal.compress.base import keep_count


def text_to_vision_attention(query: Float[Tensor, "h d"], key: Float[Tensor, "hkv n d"]) -> Float[Tensor, " n"]:
    """How much one token of text looks at each of n image tokens: softmax over these alone, mean over the heads.

    Over the whole row, text and thumbnail would take most of the mass. Each group of h / hkv heads shares one key head.
    Raises ValueError when h is no multiple of hkv, or the sizes of the heads differ.
    """
    if query.shape[0] % key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {tuple(query.shape)} must be (H, d) for key {tuple(key.shape)}, (Hkv, n, d), H a multiple of Hkv"
        )
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    logits = (key @ query[:, :, None])[..., 0] / query.shape[-1] ** 0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).mean(0)


def select_tokens(
    scores: Float[Tensor, " n"],
    keep_ratio: float = 0.25,
    row_length: int | None = None,
    valid: Bool[Tensor, " n"] | None = None,
) -> Int[Tensor, " k"]:
    """Places of the ⌊keep_ratio · n_valid⌋ best valid tokens and of every newline, ascending.

    Newlines, at the end of every ``row_length`` tokens, are counted and ranked with the others. Of equal scores the
    earlier wins. Raises ValueError for a share outside (0, 1], scores that are NaN, and lengths that do not fit.
    """
    check_share(keep_ratio)
    places = _candidates(scores, row_length, valid)
    best = best_places(scores, places, keep_count(len(places), keep_ratio))
    return _with_newlines(best, len(scores), row_length)


def select_tokens_by_threshold(
    scores: Float[Tensor, " n"],
    threshold: float = 0.1,
    row_length: int | None = None,
    valid: Bool[Tensor, " n"] | None = None,
) -> Int[Tensor, " k"]:
    """Places of the valid tokens above ``threshold`` and of every newline, ascending.

    The scores of the valid tokens are stretched so that their 5 % and 95 % quantiles become 0 and 1; where these
    coincide, whatever exceeds them is above. Raises ValueError as `select_tokens` does, and when no token is valid.
    """
    places = _candidates(scores, row_length, valid)
    if not len(places):
        raise ValueError(f"valid marks none of {len(scores)} tokens: there are no scores to scale")
    chosen = scores[places].to(torch.promote_types(scores.dtype, torch.float32))
    low, high = chosen.quantile(0.05), chosen.quantile(0.95)
    stretched = ((chosen - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    return _with_newlines(places[stretched > threshold], len(scores), row_length)


def best_places(scores: Float[Tensor, " n"], places: Int[Tensor, " m"], count: int) -> Int[Tensor, " k"]:
    """The ``count`` of ``places`` with the highest scores, best first, of equals the earlier."""
    return places[scores[places].sort(descending=True, stable=True).indices[:count]]


def check_share(keep_ratio: float) -> None:
    """Raise ValueError for a share of tokens outside (0, 1]."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio={keep_ratio}: the share of tokens to keep must be above 0 and at most 1")


def _candidates(
    scores: Float[Tensor, " n"], row_length: int | None, valid: Bool[Tensor, " n"] | None
) -> Int[Tensor, " m"]:
    """Places of the valid tokens."""
    if scores.ndim != 1 or (valid is not None and valid.shape != scores.shape):
        shape = None if valid is None else tuple(valid.shape)
        raise ValueError(f"scores {tuple(scores.shape)} and valid {shape} must be of one shape (n,)")
    if row_length is not None and (row_length < 1 or len(scores) % row_length):
        raise ValueError(f"row_length={row_length} must divide the {len(scores)} tokens into whole rows")
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    places = (everywhere if valid is None else valid.bool()).nonzero()[:, 0]
    if bool(scores[places].isnan().any()):
        raise ValueError("scores of valid tokens hold NaN: nothing can be ranked; check the model's inputs")
    return places


def _with_newlines(places: Int[Tensor, " m"], n: int, row_length: int | None) -> Int[Tensor, " k"]:
    if row_length is not None:
        newlines = torch.arange(row_length - 1, n, row_length, device=places.device)
        places = torch.cat([places, newlines]).unique()
    return places.sort().values


def vote_tiles(
    token_index: Int[Tensor, " k"],
    token_hw: tuple[int, int],
    tile_hw: tuple[int, int],
    newline: bool = False,
    max_tiles: int | None = None,
) -> Int[Tensor, "k 2"]:
    """The (row, column) of every tile that a token lies on, in reading order.

    Args:
        token_index: places in a grid of ``token_hw``, whose width counts the newline column if there is one.
        tile_hw: the grid of tiles over the same picture.
        newline: newlines, which say nothing about a place, do not vote.
        max_tiles: take those with the most votes; of equals the first in reading order.

    Raises ValueError for places outside of the grid, ``max_tiles`` below 1, and when nobody votes.
    """
    (height, width), (rows, columns) = token_hw, tile_hw
    if max_tiles is not None and max_tiles < 1:
        raise ValueError(f"max_tiles={max_tiles}: at least one tile must be fetched")
    if len(token_index) and (int(token_index.min()) < 0 or int(token_index.max()) >= height * width):
        raise ValueError(
            f"token_index reaches from {int(token_index.min())} to {int(token_index.max())}, the {height} × {width} "
            f"tokens from 0 to {height * width - 1}"
        )
    row, column = token_index // width, token_index % width
    if newline:
        row, column = row[column < width - 1], column[column < width - 1]
    if not len(row):
        raise ValueError(f"token_index holds {len(token_index)} tokens, none of which may vote: nothing can be fetched")
    tiles, votes = (row * rows // height * columns + column * columns // width).unique(return_counts=True)
    if max_tiles is not None:
        tiles = tiles[votes.sort(descending=True, stable=True).indices[:max_tiles]].sort().values
    return torch.stack([tiles // columns, tiles % columns], 1)


def scatter_tiles(
    features: Shaped[Tensor, "k n d"], positions: Int[Tensor, "k 2"], tile_hw: tuple[int, int], side: int
) -> tuple[Shaped[Tensor, "h w d"], Bool[Tensor, "h w"]]:
    """Tiles of ``side``² tokens at their (row, column) on a canvas, zeros elsewhere; and where a tile lies.

    Raises ValueError for another number of tokens or positions, positions outside of the grid, and two tiles at one.
    """
    (rows, columns), k = tile_hw, len(features)
    if features.ndim != 3 or features.shape[1] != side**2 or positions.shape != (k, 2):
        raise ValueError(
            f"features {tuple(features.shape)} and positions {tuple(positions.shape)} must be (k, {side**2}, D) and "
            f"(k, 2) for side={side}"
        )
    flat = positions[:, 0] * columns + positions[:, 1]
    inside = (positions >= 0).all() & (positions[:, 0] < rows).all() & (positions[:, 1] < columns).all()
    if not bool(inside) or len(flat.unique()) < k:
        raise ValueError(f"positions {positions.tolist()} must be different tiles of a grid of {rows} × {columns}")
    canvas = features.new_zeros(rows * columns, side, side, features.shape[-1])
    canvas[flat] = features.reshape(k, side, side, features.shape[-1])
    mask = torch.zeros(rows * columns, dtype=torch.bool, device=features.device)
    mask[flat] = True
    canvas = canvas.view(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)
    return canvas, mask.view(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1)


def crop_padding(canvas: Shaped[Tensor, "h w *d"], resized_hw: tuple[int, int]) -> Shaped[Tensor, "y x *d"]:
    """The canvas without the tokens of padding: its top left corner, in the shape of a picture of ``resized_hw``."""
    (rows, columns), (height, width) = canvas.shape[:2], resized_hw
    if height < 1 or width < 1:
        raise ValueError(f"resized_hw={resized_hw}: must be at least 1 × 1 pixels")
    if width * rows > columns * height:
        return canvas[: max(1, height * columns // width)]
    return canvas[:, : max(1, width * rows // height)]


def attention_distillation_loss(
    student: Float[Tensor, "*b k h t n"], teacher: Float[Tensor, "*b k h t n"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) over the n image tokens, mean over everything else.

    Args:
        student, teacher: raw logits of layers, heads and query rows; −∞ where a token is masked. No gradient reaches
            the teacher. A token that the student alone masks makes the loss infinite.

    Raises ValueError for shapes that differ, a row without any token, and a temperature that is not positive.
    """
    if student.shape != teacher.shape or student.ndim not in (4, 5):
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be (K, H, T, n), or with a "
            "batch in front"
        )
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    teacher = teacher.detach()
    masked = teacher.isneginf()
    if bool((masked.all(-1) | student.isneginf().all(-1)).any()):
        raise ValueError("student or teacher is −inf at every token of a row; each row needs one that is not")
    log_p, log_q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    gap = (log_p - log_q).masked_fill(masked, 0)
    return (log_p.exp() * gap).sum(-1).mean()
