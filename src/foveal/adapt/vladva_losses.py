"""VladVA's losses, which captions they take, and what a summary that holds many details looks like."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from foveal.nn.cosine import unit_rows


def split_by_length(
    lengths: Int[Tensor, " n"] | Sequence[int], short_max: int = 30, long_max: int = 500
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Which captions are short (fewer than ``short_max`` tokens) and which long (up to ``long_max``); beyond, neither.

    Raises ValueError when ``short_max`` exceeds ``long_max``.
    """
    if short_max > long_max:
        raise ValueError(f"short_max={short_max} is above long_max={long_max}: no caption could be long")
    lengths = torch.as_tensor(lengths)
    return lengths < short_max, (lengths >= short_max) & (lengths <= long_max)


def contrastive_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    logit_scale: float | Tensor,
    *,
    all_image: Float[Tensor, "g d"] | None = None,
    all_text: Float[Tensor, "g d"] | None = None,
    rank: int = 0,
) -> Float[Tensor, ""]:
    """L_c: the sum of both directions' cross-entropies over the batch; rows are normalised here.

    Args:
        image, text: row k of one belongs to row k of the other.
        logit_scale: multiplier of the cosines, not its logarithm.
        all_image, all_text: rows of all processes (`foveal.nn.gather.gather_features`), for the mean over own rows.
        rank: own rows are number rank · B to rank · B + B − 1 of them.

    Raises ValueError for shapes that do not fit and a loss that is not finite.
    """
    if image.ndim != 2 or image.shape != text.shape or 0 in image.shape:
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must be (B, D) alike, B and D > 0")
    if isinstance(logit_scale, Tensor) and logit_scale.numel() != 1:
        raise ValueError(f"logit_scale {tuple(logit_scale.shape)} must be one number")
    logit_scale = logit_scale.reshape(()) if isinstance(logit_scale, Tensor) else logit_scale
    image, text = unit_rows(image), unit_rows(text)
    all_image = image if all_image is None else unit_rows(all_image)
    all_text = text if all_text is None else unit_rows(all_text)
    least, wide = (rank + 1) * len(image), image.shape[1]
    if all_image.shape != all_text.shape or all_image.shape[1:] != (wide,) or rank < 0 or len(all_image) < least:
        raise ValueError(
            f"all_image {tuple(all_image.shape)} and all_text {tuple(all_text.shape)} must be (G, {wide}) alike, "
            f"with G ≥ {least} for rank={rank}"
        )
    own = rank * len(image) + torch.arange(len(image), device=image.device)
    with torch.autocast(image.device.type, enabled=False):  # in half precision close cosines coincide
        loss = F.cross_entropy(logit_scale * (image @ all_text.T), own)
        loss = loss + F.cross_entropy(logit_scale * (text @ all_image.T), own)
    if not bool(loss.detach().isfinite()):
        raise ValueError(f"the loss is {loss.item()}: image, text or logit_scale holds NaN or infinity")
    return loss


def next_token_loss(
    logits: Float[Tensor, "b l v"], input_ids: Int[Tensor, "b l"], caption_mask: Shaped[Tensor, "b l"]
) -> Float[Tensor, ""]:
    """L_ar: place p − 1 predicts ``input_ids[p]`` wherever ``caption_mask[p]``; the mean over all such tokens.

    Place 0 has no place before it and is ignored. Without any token the loss is 0, with a gradient of 0.

    Raises ValueError for shapes that do not fit and ids that are no whole numbers.
    """
    shapes = {tuple(input_ids.shape), tuple(caption_mask.shape)}
    if logits.ndim != 3 or shapes != {tuple(logits.shape[:2])} or input_ids.is_floating_point():
        raise ValueError(
            f"logits {tuple(logits.shape)}, input_ids {tuple(input_ids.shape)} of {input_ids.dtype} and caption_mask "
            f"{tuple(caption_mask.shape)} must be (B, L, V), (B, L) whole numbers and (B, L)"
        )
    wanted = caption_mask.bool()[:, 1:]
    return mean_cross_entropy(logits[:, :-1][wanted], input_ids[:, 1:][wanted])


def mean_cross_entropy(logits: Float[Tensor, "t v"], targets: Int[Tensor, " t"]) -> Float[Tensor, ""]:
    """In float32 or better; 0, with a gradient of 0, over nothing."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets.long()) if len(targets) else logits.sum()


def prediction_entropy(logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b"]:
    """Entropy in nats of the next-token distribution: a summary that holds many details leaves many words open."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(-1)


def cumulative_variance(emb: Float[Tensor, "n d"]) -> Float[Tensor, " k"]:
    """Share of the variance that the first 1, 2, …, min(n, D) principal directions hold; slow growth: many are in use.

    Raises ValueError for what is not (n, D), for what is not finite and for rows that are all alike up to rounding.
    """
    if emb.ndim != 2 or 0 in emb.shape:
        raise ValueError(f"emb {tuple(emb.shape)} must be (n, D) with n and D > 0")
    wide = emb.to(torch.promote_types(emb.dtype, torch.float32))
    rounding = 4 * torch.finfo(wide.dtype).eps * wide.abs().amax(0)
    # the mean of equal rows, rounded, may be another row: what is left then is no variance
    varied = wide.isfinite().all() & ((wide - wide[0]).abs() > rounding).any()
    squares = torch.linalg.svdvals(wide - wide.mean(0)).square() if bool(varied) else wide.new_zeros(1)
    if not bool(squares.sum() > 0):
        raise ValueError("emb has rows that are all alike (or not finite): there is no variance to share out")
    return squares.cumsum(0) / squares.sum()
