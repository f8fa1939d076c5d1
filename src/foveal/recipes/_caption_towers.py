"""An image tower of 32 px that learns from captions, by CLIP's loss or by predicting their words."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.data.word_ids import WordIds
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.clip import CLIPObjective, build_zero_shot_classifier, zero_shot_logits
from foveal.train import count_parameters

LONGEST = 32
"""Words of a caption, its end token included."""


class CaptionTowers(nn.Module):
    """An image tower that learns from captions: with a text tower and CLIP's loss, or by predicting the words.

    The head that predicts them has as many parameters as the text tower.
    """

    def __init__(self, words: WordIds, contrastive: bool) -> None:
        super().__init__()
        self.words = words
        self.image: nn.Module = VisionTransformer(32, 8, 96, 4, 4, output_dim=96)
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

    @torch.no_grad()
    def start_at(self, ids: Int[Tensor, "n l"]) -> None:
        """The bag of words begins with how common every word is, and need not spend its steps on finding that out."""
        if isinstance(self.text, nn.Sequential):
            common = torch.zeros(len(ids), len(self.words)).scatter_(1, ids, 1.0).mean(0)
            bias: Any = self.text[-1].bias
            bias.copy_(torch.logit(common, eps=1e-3))

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
        return zero_shot_logits(self.image(pixels), build_zero_shot_classifier(self.encode, names, templates))

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.text(torch.from_numpy(self.words.encode(texts, LONGEST)))
