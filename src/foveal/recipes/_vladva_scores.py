"""What embeddings of the test pictures are worth: retrieval, and telling a text from the same words in wrong order."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.lab import Run
from foveal.recipes._recall import recall_at_1
from foveal.recipes._vladva_scenes import swaps, told

Encode = Callable[[Sequence[str]], Float[Tensor, "n d"]]


def scored(run: Run, images: Float[Tensor, "n d"], encode: Encode) -> dict[str, float]:
    """Recall at 1 with short captions, and how often the true text is nearer than the swapped one (in percent)."""
    data = run.shared(told, True)
    found = {"r@1": recall_at_1(images, encode(data.short))}
    asked = swaps(data.scenes)
    texts = encode([text for swap in asked for text in (swap.true, swap.false)]).unflatten(0, (len(asked), 2))
    cosines = F.cosine_similarity(images[[swap.scene for swap in asked], None], texts, dim=-1)
    right = (cosines[:, 0] > cosines[:, 1]).float()
    for kind in ("attributes", "relations"):
        mine = [i for i, swap in enumerate(asked) if swap.kind == kind]
        found[kind] = 100 * right[mine].mean().item()
    return {**found, "swap": (found["attributes"] + found["relations"]) / 2}
