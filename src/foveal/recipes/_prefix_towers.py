"""A head on frozen image features, and a text tower that takes a prefix."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.data.word_ids import WordIds
from foveal.nn.attention import padding_mask
from foveal.nn.transformer import Transformer
from foveal.pretrain.prefix_conditioning import (
    CAPTION,
    PrefixConditioningObjective,
    PrefixTextEncoder,
)

LONGEST, WIDTH, FEATURES = 40, 64, 128


class Body(nn.Module):
    """A causal transformer with learned positions, the prefix's included."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.01 * torch.randn(LONGEST + 1, WIDTH))
        self.layers, self.norm = Transformer(WIDTH, 2, 4), nn.LayerNorm(WIDTH)

    def forward(self, embeddings: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        x = embeddings + self.positions[: embeddings.shape[1]]
        return self.norm(self.layers(x, mask=padding_mask(mask), causal=True))


class PrefixTowers(nn.Module):
    """Image head, text tower, objective; calling it gives the loss of a batch."""

    def __init__(self, words: WordIds, objective: str) -> None:
        super().__init__()
        self.words = words
        self.image = nn.Sequential(nn.Linear(FEATURES, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        embedding = nn.Embedding(len(words), WIDTH)
        nn.init.normal_(embedding.weight, std=0.02)
        self.text = PrefixTextEncoder(embedding, Body(), projection=nn.Linear(WIDTH, WIDTH, bias=False))
        self.objective = PrefixConditioningObjective(objective)

    def forward(
        self,
        images: Float[Tensor, "b f"],
        ids: Int[Tensor, "b l"],
        labels: Int[Tensor, " b"],
        sources: Int[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        return self.objective(self.image(images), self.text(ids, ids > 0, sources), labels).loss

    def encode(self, texts: Sequence[str], source: int = CAPTION) -> Float[Tensor, "n d"]:
        ids = torch.from_numpy(self.words.encode(texts))
        return self.text(ids, ids > 0, source)
