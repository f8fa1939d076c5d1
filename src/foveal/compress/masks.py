"""The attention mask of one decoder layer, in the form its kernel wants.

The library sizes one mask for all layers; here every layer has its own number of keys.
"""

import torch
from jaxtyping import Bool
from torch import Tensor


def causal_mask(kernel: str, valid: Bool[Tensor, "b k"], queries: int, dtype: torch.dtype) -> Tensor | None:
    """Mask for the last ``queries`` of k keys, of which the ``valid`` ones may be attended.

    None where the kernel needs no mask: without padding, for a single query or for as many queries as keys (SDPA then
    stays on its causal path). Flash kernels get (B, k), SDPA bool (B, 1, queries, k), eager the same as addends.
    """
    keys = valid.shape[1]
    if bool(valid.all()) and (queries == 1 or kernel != "eager") and (queries in (1, keys) or kernel != "sdpa"):
        return None
    if kernel not in ("eager", "sdpa"):
        return valid
    columns = torch.arange(keys, device=valid.device)
    allowed = (columns <= columns[keys - queries :, None]) & valid[:, None, None, :]
    if kernel == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
