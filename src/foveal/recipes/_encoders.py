"""Small image encoders that learn from nothing, from pixels, from class names or from captions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.data.word_ids import WordIds
from foveal.nn.text import TextTransformer
from foveal.nn.transformer import Transformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.clip import CLIPObjective, build_zero_shot_classifier, zero_shot_logits
from foveal.train import count_parameters

LONGEST = 32
"""Words of a caption, its end token included."""
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


class CaptionTowers(nn.Module):
    """An image tower that learns from captions: with a text tower and CLIP's loss, or by predicting the words.

    The head that predicts them has as many parameters as the text tower.
    """

    def __init__(self, words: WordIds, contrastive: bool) -> None:
        super().__init__()
        self.words = words
        self.image = VisionTransformer(32, 8, 96, 4, 4, output_dim=96)
        self.text: nn.Module = TextTransformer(LONGEST, len(words), 96, 2, 4, output_dim=96)
        self.objective = CLIPObjective() if contrastive else None
        if not contrastive:
            hidden = count_parameters(self.text) // (96 + len(words))
            self.text = nn.Sequential(nn.Linear(96, hidden), nn.GELU(), nn.Linear(hidden, len(words)))

    def forward(self, pixels: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
        if self.objective is not None:
            return self.objective(self.image(pixels), self.text(ids)).loss
        said = torch.zeros(len(ids), len(self.words)).scatter_(1, ids, 1.0)[:, 2:-1]  # without padding and end
        return F.binary_cross_entropy_with_logits(self.text(self.image(pixels))[:, 2:-1], said)

    def clamp(self) -> None:
        if self.objective is not None:
            self.objective.logit_scale.clamp_()

    @torch.no_grad()
    def class_scores(
        self, pixels: Float[Tensor, "b 3 s s"], names: Sequence[str], templates: Sequence[str]
    ) -> Float[Tensor, "b k"]:
        """Zero-shot; the bag of words scores a class by the log-probability of its name, which is one word."""
        if self.objective is None:
            return F.logsigmoid(self.text(self.image(pixels)))[:, self.words.encode(names)[:, 0]]
        encode = lambda texts: self.text(torch.from_numpy(self.words.encode(texts, LONGEST)))  # noqa: E731
        return zero_shot_logits(self.image(pixels), build_zero_shot_classifier(encode, names, templates))
