"""Small image encoders that learn from nothing, from pixels, from class names or from captions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.text import TextTransformer
from foveal.nn.transformer import Transformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.clip import CLIPObjective

OBJECTIVES = ("random", "masked", "category", "contrastive")


class TinyEncoder(nn.Module):
    """A ViT of 4 layers with the head that ``objective`` needs; calling it gives the loss.

    *masked* hides five eighths of the patches and predicts their pixels (He et al., arXiv 2111.06377); *category* is
    cross-entropy on class labels; *contrastive* is CLIP's loss with a text tower of 2 layers.
    """

    def __init__(self, objective: str, size: int, patch: int, width: int, classes: int, words: int, length: int):
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r}: choose one of {', '.join(OBJECTIVES)}")
        self.objective, self.patch = objective, patch
        self.vision = VisionTransformer(size, patch, width, 4, 4)
        if objective == "masked":
            self.hidden = nn.Parameter(0.02 * torch.randn(width))
            self.decode, self.pixels = Transformer(width, 1, 4), nn.Linear(width, 3 * patch**2)
        elif objective == "category":
            self.classify = nn.Linear(width, classes)
        elif objective == "contrastive":
            self.text, self.clip = TextTransformer(length, words, width, 2, 4), CLIPObjective()

    def forward(
        self, images: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b l"], labels: Int[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        if self.objective == "contrastive":
            return self.clip(self.vision(images), self.text(ids)).loss
        if self.objective == "category":
            return F.cross_entropy(self.classify(self.vision(images)), labels)
        places = self.vision.positional_embedding[1:]
        order = torch.rand(len(images), len(places)).argsort(1)
        keep, hide = order.tensor_split([len(places) * 3 // 8], dim=1)
        queries = self.hidden + places[hide]
        decoded = self.decode(torch.cat([self.vision.tokens(images, keep), queries], 1))[:, -hide.shape[1] :]
        patches = F.unfold(images, self.patch, stride=self.patch).mT
        return F.mse_loss(self.pixels(decoded), patches.gather(1, hide[..., None].expand(-1, -1, patches.shape[2])))

    @torch.no_grad()
    def patch_features(self, images: Float[Tensor, "b 3 s s"], batch_size: int = 500) -> Float[Tensor, "b n d"]:
        """Patch tokens of the last layer, without the class token."""
        return torch.cat([self.vision.tokens(batch)[:, 1:] for batch in images.split(batch_size)])
