"""Rows of length 1, whose products are cosines."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def unit_rows(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """``x`` over its norm along the last axis, in float32 or better: half precision loses close cosines.

    Zero rows stay zero; non-finite rows become NaN, which is the caller's to report.
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-12)
