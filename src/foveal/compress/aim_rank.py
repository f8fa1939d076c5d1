"""How important each token of a prompt is: the PageRank on one decoder layer's attention of `foveal.compress.aim`.

Two ways to the same number: from logits that are there, and from queries and keys without ever holding all logits.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveal.compress.scores import ROWS, attention_logits

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
    query: Float[Tensor, "h q d"],
    key: Float[Tensor, "hkv l d"],
    tau: float,
    iters: int,
    damping: float,
    spend: Callable[[int], None] = lambda flops: None,
    block: int = BLOCK,
) -> Float[Tensor, " q"]:
    """`pagerank_importance` of the last q of l tokens under causal attention, at most ``block`` entries at a time.

    A token gets votes from itself and later tokens alone: tokens in front of these q need no queries. The rows are gone
    through from the last to the first. Once a block has got the votes of all later ones, each of its steps needs only
    the block itself, and all its votes for earlier tokens are cast together: the attention is computed once, where it
    is not masked, and read from memory once. ``spend`` is told the FLOPs.
    """
    (heads, count, width), length = query.shape, key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(exact) / (width**0.5 * tau), key.to(exact)
    earlier = length - count
    rank = query.new_zeros(heads, iters + 1, count)
    rank[:, 0] = 1 / length
    rows = max(1, min(ROWS, block // (heads * length)))  # few: a block's entries above the diagonal are in vain
    for end in range(count, 0, -rows):
        first = max(0, end - rows)
        logits = attention_logits(query[:, first:end], key[:, : earlier + end])
        later = torch.ones(end - first, end - first, dtype=torch.bool, device=query.device).triu(1)
        logits[:, :, earlier + first :].masked_fill_(later, -torch.inf)
        share = logits.softmax(-1)[:, :, earlier:]
        before, within = share[:, :, :first], share[:, :, first:]
        own = rank[:, :, first:end]
        for step in range(iters):
            own[:, step + 1] += (1 - damping) * (own[:, step, None] @ within)[:, 0] + damping / length
        rank[:, 1:, :first] += (1 - damping) * (own[:, :-1] @ before)
        spend(2 * heads * (end - first) * ((earlier + end) * width + end * iters))
    return rank[:, -1].square().mean(0).sqrt()
