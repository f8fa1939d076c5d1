"""What objectives of networks that look at image and text together share: matching, and words that no loss counts."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.pretrain.base import at_least_float32

IGNORED = -100
"""The label of a word that is not to be predicted; cross-entropy passes over it."""


def itm_loss(logits: Float[Tensor, "b *q 2"], targets: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of image–text matching; target 1: the image belongs to the text.

    With a query axis, (B, Q, 2), the scores are averaged over the queries first.
    Raises ValueError for shapes that do not fit and for other targets than 0 and 1.
    """
    shaped = logits.ndim in (2, 3) and logits.shape[-1] == 2 and 0 not in logits.shape
    if not shaped or targets.shape != logits.shape[:1]:
        found = f"logits {tuple(logits.shape)}, targets (labels) {tuple(targets.shape)}"
        raise ValueError(f"{found}: must be (B, 2) or (B, Q, 2), and (B,)")
    if bool((other := (targets != 0) & (targets != 1)).any()):
        value = targets[other][0].item()
        raise ValueError(f"targets (labels) hold {value}: must be 0 (another image) or 1 (the text's own image)")
    scores = at_least_float32(logits)
    return F.cross_entropy(scores.mean(1) if scores.ndim == 3 else scores, targets.long())
