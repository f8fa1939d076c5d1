"""How important each token of a prompt is: the PageRank on one decoder layer's attention of `foveal.compress.aim`.

Two ways to the same number: from logits that are there, and from queries and keys without ever holding all logits.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 2**22
"""Entries of the attention, all heads together, that are held at a time: 16 MB in float32."""


def pagerank_importance(
    logits: Float[Tensor, "b h l l"],
    valid: Bool[Tensor, "b l"] | None = None,
    tau: float = 0.1,
    iters: int = 5,
    damping: float = 0.0,
) -> Float[Tensor, "b l"]:
    """√ of the mean over heads of d², with d after ``iters`` steps from 1/L; in float32 or better, 0 at padding.

    ``logits`` are scaled and have −∞ where a row may not look. Tokens that are not ``valid`` neither vote nor count in
    L. Raises ValueError for other shapes, tau ≤ 0, iters < 0 and a damping outside [0, 1].
    """
    if logits.ndim != 4 or logits.shape[2] != logits.shape[3]:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; give (batch, heads, tokens, tokens)")
    batch, heads, length, _ = logits.shape
    if valid is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=logits.device)
    if valid.shape != (batch, length):
        raise ValueError(f"valid has shape {tuple(valid.shape)}, logits {tuple(logits.shape)}; give one for each token")
    if not tau > 0 or iters < 0 or not 0 <= damping <= 1:
        raise ValueError(f"tau={tau} must be above 0, iters={iters} not negative, damping={damping} in [0, 1]")
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / tau
    share = scaled.masked_fill(~valid[:, None, None], -torch.inf).softmax(-1)
    share = share.masked_fill(~valid[:, None, :, None], 0.0)  # a row of padding may have nothing to look at
    start = (valid / valid.sum(1, keepdim=True).clamp(min=1)).to(share.dtype)[:, None].expand(-1, heads, -1)
    rank = start
    for _ in range(iters):
        rank = (1 - damping) * (rank[:, :, None] @ share)[:, :, 0] + damping * start
    return rank.square().mean(1).sqrt()


@torch.no_grad()
def causal_importance(
    query: Float[Tensor, "h l d"],
    key: Float[Tensor, "hkv l d"],
    tau: float,
    iters: int,
    damping: float,
    spend: Callable[[int], None] = lambda flops: None,
    block: int = BLOCK,
) -> Float[Tensor, " l"]:
    """`pagerank_importance` of causal attention, with ``block`` entries of it in memory at a time.

    A token gets votes from itself and later tokens alone. So the rows are gone through from the last to the first, and
    once the votes of a block have been cast its own d of that step is complete and can vote in the next: all steps are
    done in one pass, each block of attention computed once. ``spend`` is told the FLOPs.
    """
    heads, length, width = query.shape
    exact = torch.promote_types(query.dtype, torch.float32)
    key = key.to(exact).repeat_interleave(heads // len(key), 0)
    rank = query.new_zeros(iters + 1, heads, length, dtype=exact)
    rank[0] = 1 / length
    rows = max(1, block // (heads * length))
    for end in range(length, 0, -rows):
        first = max(0, end - rows)
        logits = query[:, first:end].to(exact) @ key[:, :end].transpose(1, 2) / (width**0.5 * tau)
        later = torch.ones(end - first, end, dtype=torch.bool, device=query.device).triu(first + 1)
        share = logits.masked_fill_(later, -torch.inf).softmax(-1)
        for now, following in pairwise(rank):
            following[:, :end] += (1 - damping) * (now[:, None, first:end] @ share)[:, 0]
            following[:, first:end] += damping / length
        spend(2 * heads * (end - first) * end * (width + iters))
    return rank[-1].square().mean(0).sqrt()
