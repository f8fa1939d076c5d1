"""FILIP's token selection: what a worker sends to the others is a quarter of its tokens, those that fit something best.

See `foveal.pretrain.filip`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import alike, full_precision, rounded
from foveal.pretrain.filip_interaction import (
    check_finite,
    check_real,
    check_tokens,
    check_width,
    chunk_of,
    real_tokens,
)


def select_tokens(
    tokens: Float[Tensor, "b n d"],
    reference_tokens: Float[Tensor, "b2 m d"],
    keep_ratio: float = 0.25,
    *,
    mask: Bool[Tensor, "b n"] | None = None,
    reference_mask: Bool[Tensor, "b2 m"] | None = None,
) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The k = ⌊N · keep_ratio⌋ (≥ 1) tokens of every sample that fit some token of some reference sample best.

    Call it before tokens are sent to other devices. A token's score is its largest cosine to any real token of *any*
    sample of the other modality; the own partner has no privilege.

    Returns:
        The tokens as they came, with gradient; their mask (padding comes last, and only if there is nothing else);
        their indices by falling score, the lower one first where scores tie. No gradient flows through the choice.

    Raises ValueError for a ratio outside (0, 1] and whatever `token_similarity` refuses.
    """
    check_ratio(keep_ratio)
    check_tokens("tokens", tokens, "mask", mask)
    check_tokens("reference_tokens", reference_tokens, "reference_mask", reference_mask)
    check_width(tokens, reference_tokens)
    check_real("mask", mask)
    check_real("reference_mask", reference_mask)
    rows, others = real_tokens(tokens, mask), real_tokens(reference_tokens, reference_mask)
    check_finite("tokens", rows)
    check_finite("reference_tokens", others)
    with torch.no_grad(), full_precision(tokens):
        others = others.flatten(0, 1) if reference_mask is None else others[reference_mask]
        rows, others = alike(rows, others)
        scores = _scores(rows, others, mask)
        kept = max(1, math.floor(tokens.shape[1] * keep_ratio + 1e-9))  # 0.29 · 100 is 28.999… in binary
        indices = scores.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    selected = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
    real = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask.gather(1, indices)
    return selected, real, indices


def _scores(
    tokens: Float[Tensor, "b n d"], others: Float[Tensor, "r d"], mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "b n"]:
    """Largest cosine of every real token to any of the others, minus infinity for padding.

    Sums of float32 products may differ for equal tokens. What they cannot tell from its neighbour in the order is
    scored again in float64, which would be slow for all tokens.
    """
    best = _best_cosine(tokens.flatten(0, 1), others).view(tokens.shape[:2])
    best = best if mask is None else best.masked_fill(~mask, -torch.inf)
    falling, order = best.sort(dim=1, descending=True)
    bound = 2 * (tokens.shape[2] + 2) * torch.finfo(torch.float32).eps  # what rounding may do to two scores
    close = -falling.diff(dim=1) < bound  # not so for padding, infinity less infinity
    close = torch.zeros_like(best, dtype=torch.bool).scatter(1, order, F.pad(close, (1, 0)) | F.pad(close, (0, 1)))
    exact = best.double()
    exact[close] = rounded(_best_cosine(tokens[close].double(), others.double()))
    return exact


def _best_cosine(rows: Float[Tensor, "n d"], others: Float[Tensor, "r d"]) -> Float[Tensor, " n"]:
    rows, others = unit_rows(rows), unit_rows(others)
    best = rows.new_full((len(rows),), -torch.inf)
    for some in others.split(chunk_of(None, max(1, len(rows)))):
        best = torch.maximum(best, (rows @ some.T).amax(1))
    return best


def check_ratio(keep_ratio: float) -> None:
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio={keep_ratio}: must be in (0, 1]")
