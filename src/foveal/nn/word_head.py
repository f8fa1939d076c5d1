"""From hidden states to words with the word embedding itself: the read-out of BERT and of models built like it.

    scores = E · LN(gelu(W h + b)) + bias            E: the input embedding, shared

Parameter names are those of BERT's ``cls.predictions``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class TiedWordHead(nn.Module):
    """Scores of all words, (…, vocabulary). ``decoder.weight`` *is* the weight of ``embedding``."""

    def __init__(self, embedding: nn.Embedding, eps: float = 1e-12) -> None:
        super().__init__()
        words, width = embedding.weight.shape
        self.transform = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})
        self.decoder = nn.Linear(width, words, bias=False)
        self.decoder.weight = embedding.weight
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, hidden: Float[Tensor, "*s d"]) -> Float[Tensor, "*s v"]:
        return self.decoder(self.transform["LayerNorm"](F.gelu(self.transform["dense"](hidden)))) + self.bias
