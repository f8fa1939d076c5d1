"""Late interaction of all images with all texts, in memory that holds one tile of token scores at a time.

    S_ikjr = v_ik · t_jr            a_ij = mean_k max_r S_ikjr            b_ij = mean_r max_k S_ikjr

The maxima are the only places where a gradient enters S. So the forward pass keeps, of every tile of S, nothing but
where its maxima stood (a byte each for up to 256 tokens), and the backward pass writes the gradients to those places of
an empty tile. The dense form holds S and its gradient, B² · N · L numbers each, and copies of both.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import alike, first_order_only, full_precision

TILE = 2**22
"""Token scores that are held at once unless ``chunk_size`` says otherwise: 16 MiB, more is not faster."""


def check_tokens(name: str, tokens: Tensor, mask_name: str, mask: Tensor | None) -> None:
    """ValueError unless tokens are (B, N, D), none of them 0, and the mask, if any, is a bool (B, N)."""
    if tokens.ndim != 3 or 0 in tokens.shape:
        raise ValueError(f"{name} {tuple(tokens.shape)} must be (B, N, D), none of them 0")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"{mask_name} is of {mask.dtype}: must be bool, True for real tokens; give mask.bool()")
    if mask.shape != tokens.shape[:2]:
        raise ValueError(f"{mask_name} {tuple(mask.shape)} must be {tuple(tokens.shape[:2])}, as {name} has it")


def check_real(mask_name: str, mask: Tensor | None) -> None:
    """ValueError when a row of the mask is all padding: such a sample has no score."""
    if mask is not None and not bool(mask.any(1).all()):
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        raise ValueError(f"{mask_name} is False everywhere in sample {empty[0]}: drop samples without a real token")


def check_finite(name: str, numbers: Tensor) -> None:
    """ValueError when one of the numbers is NaN or infinite."""
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: check the encoder's output")


def check_width(tokens: Tensor, others: Tensor) -> None:
    """ValueError unless image and text tokens have the same last axis."""
    if tokens.shape[-1] != others.shape[-1]:
        shapes = f"{tuple(tokens.shape)} and {tuple(others.shape)}"
        raise ValueError(f"tokens {shapes} of images and texts must be alike in width: project them first")


def real_tokens(tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n d"]:
    """Zeros where the mask is False, so that not even NaN there can reach a result or a gradient."""
    return tokens if mask is None else tokens.masked_fill(~mask[..., None], 0)


def chunk_of(chunk_size: int | None, scores_per_sample: int) -> int:
    """Samples to take at once: ``chunk_size``, or as many as fill a `TILE`."""
    if chunk_size is None:
        return max(1, TILE // scores_per_sample)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1, or None to choose it")
    return chunk_size


def late_interaction(
    image_tokens: Float[Tensor, "bi n d"],
    text_tokens: Float[Tensor, "bt l d"],
    image_mask: Bool[Tensor, "bi n"] | None,
    text_mask: Bool[Tensor, "bt l"] | None,
    chunk_size: int | None,
) -> tuple[Float[Tensor, "bi bt"], Float[Tensor, "bi bt"]]:
    """a and b of tokens that are normalised here; the arguments have been checked.

    Where maxima tie, the whole gradient goes to the first of them. Scores of tokens that repeat tie only up to the last
    digit: which of the copies gets the gradient may depend on ``chunk_size``.
    """
    image, text = alike(real_tokens(image_tokens, image_mask), real_tokens(text_tokens, text_mask))
    image, text = unit_rows(image), unit_rows(text)
    chunk = chunk_of(chunk_size, image.shape[0] * image.shape[1] * text.shape[1])
    return _LateInteraction.apply(image, text, image_mask, text_mask, chunk)


def _tile(
    image: Float[Tensor, "bi n d"],
    words: Float[Tensor, "c l d"],
    image_mask: Bool[Tensor, "bi n"] | None,
    real: Bool[Tensor, "c l"] | None,
) -> Float[Tensor, "bi n c l"]:
    """All token scores of a few texts; minus infinity where either token is padding."""
    scores = (image.flatten(0, 1) @ words.flatten(0, 1).T).view(*image.shape[:2], *words.shape[:2])
    if image_mask is not None:
        scores.masked_fill_(~image_mask[:, :, None, None], -torch.inf)
    if real is not None:
        scores.masked_fill_(~real, -torch.inf)
    return scores


def _weights(mask: Bool[Tensor, "b n"] | None, like: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
    """What each token counts in the mean over the real tokens of its sample; padding counts nothing."""
    if mask is None:
        return like.new_full(like.shape[:2], 1 / like.shape[1])
    return mask.to(like.dtype) / mask.sum(1, keepdim=True)


def _small(index: Int[Tensor, "*s"], size: int) -> Int[Tensor, "*s"]:
    """Indices below ``size`` in as few bytes as hold them."""
    return index.to(torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32)


class _LateInteraction(torch.autograd.Function):
    """Tiles of ``chunk`` texts. Between the passes live the unit tokens and the places of the maxima."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        of_patch, of_word = _weights(image_mask, image), _weights(text_mask, text)
        image_to_text, text_to_image = (image.new_empty(len(image), len(text)) for _ in range(2))
        places: list[tuple[Tensor, Tensor]] = []
        with full_precision(image):
            for start in range(0, len(text), chunk):
                some = slice(start, start + chunk)
                scores = _tile(image, text[some], image_mask, None if text_mask is None else text_mask[some])
                best, word = scores.max(3)
                best = best if image_mask is None else best.masked_fill_(~image_mask[..., None], 0)
                image_to_text[:, some] = (best * of_patch[..., None]).sum(1)
                best, patch = scores.max(1)
                best = best if text_mask is None else best.masked_fill_(~text_mask[some], 0)
                text_to_image[:, some] = (best * of_word[some]).sum(2)
                places.append((_small(word, text.shape[1]), _small(patch, image.shape[1])))
        ctx.save_for_backward(image, text, of_patch, of_word, *(place for pair in places for place in pair))
        ctx.chunk = chunk
        return image_to_text, text_to_image

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        first_order_only("token_similarity")
        image, text, of_patch, of_word, *places = ctx.saved_tensors
        wants_image, wants_text, *_ = ctx.needs_input_grad
        # contiguous, else flatten below would copy and the copy take the gradient
        grad_image = torch.zeros_like(image, memory_format=torch.contiguous_format) if wants_image else None
        grad_text = torch.empty_like(text)
        with full_precision(image):
            for number, start in enumerate(range(0, len(text), ctx.chunk)):
                some = slice(start, start + ctx.chunk)
                word, patch = (place.long() for place in places[2 * number : 2 * number + 2])
                tile = image.new_zeros(*image.shape[:2], *text[some].shape[:2])
                tile.scatter_(3, word[..., None], (of_patch[..., None] * grads[0][:, None, some])[..., None])
                tile.scatter_add_(1, patch[:, None], (of_word[some] * grads[1][:, some, None])[:, None])
                flat = tile.flatten(2).flatten(0, 1)
                if grad_image is not None:
                    grad_image.flatten(0, 1).addmm_(flat, text[some].flatten(0, 1))
                if wants_text:
                    grad_text[some] = (flat.T @ image.flatten(0, 1)).view_as(text[some])
        return grad_image, grad_text if wants_text else None, None, None, None
