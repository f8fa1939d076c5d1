"""Sequences of embeddings for VladVA: segments put one after the other without padding between, and their summary."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from foveal.nn.cosine import unit_rows


class Assembled(NamedTuple):
    """What a language model reads: ``segment`` says which segment a place is from, −1 on padding."""

    embeds: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    segment: Int64[Tensor, "b l"]
    position_ids: Int64[Tensor, "b l"]


def assemble(
    segments: Sequence[tuple[Float[Tensor, "b _ d"], Shaped[Tensor, "b _"]]], side: Literal["right", "left"] = "right"
) -> Assembled:
    """The segments one after the other, row by row, without their padded entries.

    A shorter row is padded with zero vectors on the given side. Positions count a row's tokens from 0 and are 0 on
    padding.

    Args:
        segments: pairs of embeddings (B, l, D) and a mask (B, l), true at tokens; at least one.
        side: where the padding goes.

    Raises ValueError for no segment, shapes that do not fit, no token at all, and an unknown side.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side={side!r}: must be 'right' or 'left'")
    if not segments:
        raise ValueError("segments is empty: give at least one (embeddings, mask)")
    first = segments[0][0]
    for number, (emb, mask) in enumerate(segments):
        fits = emb.ndim == 3 and emb.shape[:2] == mask.shape
        if not fits or len(emb) != len(first) or emb.shape[2] != first.shape[2]:
            raise ValueError(
                f"segments[{number}] has embeddings {tuple(emb.shape)} and mask {tuple(mask.shape)}: they must be "
                f"(B, l, D) and (B, l) with the B and D of segments[0], {tuple(first.shape)}"
            )
    embeds = torch.cat([emb for emb, _ in segments], 1)
    mask = torch.cat([mask.bool() for _, mask in segments], 1)
    numbers = torch.tensor([number for number, (emb, _) in enumerate(segments) for _ in range(emb.shape[1])])
    lengths = mask.sum(1)
    longest = int(lengths.max()) if len(lengths) else 0
    if longest == 0:
        raise ValueError("segments hold no token in any row: their masks are all false")
    # a stable sort brings padding to one end and leaves the order of the tokens
    if side == "right":
        order = (~mask).long().argsort(dim=1, stable=True)[:, :longest]
    else:
        order = mask.long().argsort(dim=1, stable=True)[:, -longest:]
    mask = mask.gather(1, order)
    embeds = embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[2])).masked_fill(~mask[..., None], 0)
    segment = numbers.to(order.device)[order].masked_fill(~mask, -1)
    positions = (mask.long().cumsum(1) - 1).masked_fill(~mask, 0)
    return Assembled(embeds, mask, segment, positions)


def last_token_index(mask: Shaped[Tensor, "b l"]) -> Int64[Tensor, " b"]:
    """The place of each row's last token, on whichever side the padding is.

    Raises ValueError for a mask that is not (B, L) and for a row without a token.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask {tuple(mask.shape)} must be (B, L)")
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1)
    found = last.amax(1) if mask.shape[1] else last.new_full((len(mask),), -1)
    if bool((found < 0).any()):
        raise ValueError(f"mask has no token in row {int((found < 0).nonzero()[0])}: an empty text has no last token")
    return found


def summary_embedding(
    hidden: Float[Tensor, "b l d"], mask: Shaped[Tensor, "b l"] | None = None, index: Int[Tensor, " b"] | None = None
) -> Float[Tensor, "b d"]:
    """Each row's hidden state at its summary token, as a unit vector in float32 or better.

    Args:
        hidden: states of the last layer, after the final norm.
        mask: true at tokens; the summary is the last of them. Without mask and index it is the last place.
        index: place of the summary token; it wins over the mask, as it must where a caption follows the prompt.

    Raises ValueError for shapes that do not fit, an index outside the sequence, and a row without a token.
    """
    if hidden.ndim != 3 or hidden.shape[1] == 0:
        raise ValueError(f"hidden {tuple(hidden.shape)} must be (B, L, D) with L ≥ 1")
    batch, length = hidden.shape[:2]
    if index is not None:
        if index.shape != (batch,):
            raise ValueError(f"index {tuple(index.shape)} must hold one place for each of the {batch} rows of hidden")
        if batch and not 0 <= int(index.min()) <= int(index.max()) < length:
            raise ValueError(f"index holds {int(index.min())}..{int(index.max())}: it must lie in [0, {length - 1}]")
    elif mask is not None:
        if mask.shape != hidden.shape[:2]:
            raise ValueError(f"mask {tuple(mask.shape)} must be {(batch, length)}, as hidden is")
        index = last_token_index(mask)
    else:
        index = torch.full((batch,), length - 1, device=hidden.device)
    return unit_rows(hidden[torch.arange(batch, device=hidden.device), index])
