"""GRAIN's decoder: learned queries look at the tokens of an image; some find regions, the last one sums up the image.

    h = norm1(t);  t ← t + self_attn(h + q, h + q, h)           q: the queries, t starts at 0
    h = norm2(t);  t ← t + cross_attn(h + q, M, M)              M = memory_norm(proj(tokens))
    t ← t + linear2(relu(linear1(norm3(t))))                    and after the last layer t ← norm(t)

All queries look at each other in self-attention, so what a region holds reaches the vector of the image. The layers
are those of DETR (Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, arXiv 2005.12872).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class GrainDecoderOutput:
    """What the queries found. Vectors are not normalised; boxes are cx, cy, w, h in shares of the picture."""

    image: Float[Tensor, "b e"]
    regions: Float[Tensor, "b q e"]
    boxes: Float[Tensor, "b q 4"]


class GrainDecoderLayer(nn.Module):
    """One pre-norm layer; ``queries`` are added wherever places matter, never to values."""

    def __init__(self, d_model: int, num_heads: int, dim_ff: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, num_heads, dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(d_model, num_heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(d_model, dim_ff)
        self.linear2 = nn.Linear(dim_ff, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, t: Float[Tensor, "b q d"], queries: Float[Tensor, "q d"], memory: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b q d"]:
        h = self.norm1(t)
        placed = h + queries
        t = t + self.dropout(self.self_attn(placed, placed, h, need_weights=False)[0])
        placed = self.norm2(t) + queries
        t = t + self.dropout(self.cross_attn(placed, memory, memory, need_weights=False)[0])
        return t + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm3(t))))))


class GrainDecoder(nn.Module):
    """Tokens of an image -> its vector, and a vector and a box for each region.

    Args:
        visual_dim: width of the tokens.
        embed_dim: width E of the vectors, that of the text features.
        num_queries: regions Q; one more query is for the image, the last one, which has no box.
    """

    def __init__(
        self,
        visual_dim: int,
        embed_dim: int,
        num_queries: int = 5,
        d_model: int = 512,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_ff: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_queries < 1 or num_layers < 1:
            raise ValueError(f"num_queries={num_queries}, num_layers={num_layers}: both must be at least 1")
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads={num_heads}: must be at least 1 and divide d_model={d_model}")
        self.visual_dim = visual_dim
        self.proj = nn.Linear(visual_dim, d_model, bias=False)
        self.memory_norm = nn.LayerNorm(d_model)
        self.queries = nn.Parameter(torch.empty(num_queries + 1, d_model))
        self.layers = nn.ModuleList(GrainDecoderLayer(d_model, num_heads, dim_ff, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.box_head = nn.ModuleList(nn.Linear(d_model, out) for out in (d_model, d_model, 4))
        self.image_proj = nn.Parameter(torch.empty(d_model, embed_dim))
        self.region_proj = nn.Parameter(torch.empty(d_model, embed_dim))
        for matrix in self.parameters():
            if matrix.ndim == 2:
                nn.init.xavier_uniform_(matrix)
        nn.init.normal_(self.queries)
        for projection in (self.image_proj, self.region_proj):
            nn.init.normal_(projection, std=d_model**-0.5)

    def forward(self, tokens: Float[Tensor, "b n v"]) -> GrainDecoderOutput:
        """ValueError unless ``tokens`` are (B, N, visual_dim) with at least one token."""
        if tokens.ndim != 3 or tokens.shape[2] != self.visual_dim or tokens.shape[1] == 0:
            raise ValueError(f"tokens {tuple(tokens.shape)} must be (B, N, {self.visual_dim}) with N > 0")
        memory = self.memory_norm(self.proj(tokens))
        t = torch.zeros_like(self.queries).expand(len(tokens), -1, -1)
        for layer in self.layers:
            t = layer(t, self.queries, memory)
        t = self.norm(t)
        regions, image = t[:, :-1], t[:, -1]
        return GrainDecoderOutput(image @ self.image_proj, regions @ self.region_proj, self._boxes(regions))

    def _boxes(self, regions: Float[Tensor, "b q d"]) -> Float[Tensor, "b q 4"]:
        first, second, last = self.box_head
        return last(F.relu(second(F.relu(first(regions))))).sigmoid()
