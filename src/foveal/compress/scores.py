"""How much some tokens attend to others: the scores that rankings need, beside the kernel that a layer runs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROWS = 128
"""Query rows whose attention is in memory at a time."""


def attention_logits(query: Float[Tensor, "h q d"], key: Float[Tensor, "hkv n d"]) -> Float[Tensor, "h q n"]:
    """query · key, not yet scaled. Each group of h / hkv query heads shares one key head, which is not copied.

    Raises ValueError when h is no multiple of hkv.
    """
    if query.shape[0] % key.shape[0]:
        raise ValueError(f"query has {query.shape[0]} heads, no multiple of the {key.shape[0]} heads of key")
    rows = query.reshape(len(key), -1, query.shape[-1])  # the heads of a group below one another
    return (rows @ key.transpose(1, 2)).view(*query.shape[:2], key.shape[1])


def instruction_attention(
    query: Float[Tensor, "h q d"], key: Float[Tensor, "hkv l d"], mask: Bool[Tensor, "q l"] | None = None
) -> Float[Tensor, " l"]:
    """Attention that each of l tokens receives, mean over heads and over query rows, in float32.

    Each group of h / hkv query heads shares one key head. ``mask`` is True where a row may look; None: everywhere.
    Raises ValueError when h is no multiple of hkv.
    """
    wide = torch.promote_types(query.dtype, torch.float32)  # half precision may overflow in the product
    query, key = query.to(wide), key.to(wide)
    total = torch.zeros(key.shape[1], device=key.device)
    for first in range(0, query.shape[1], ROWS):
        part = slice(first, first + ROWS)
        logits = attention_logits(query[:, part], key).float().div_(query.shape[-1] ** 0.5)
        if mask is not None:
            logits.masked_fill_(~mask[part], torch.finfo(logits.dtype).min)
        total = total + logits.softmax(-1).sum((0, 1))
    return total / (query.shape[0] * query.shape[1])
