"""Q-Former: learned queries that read an image, alone or in one sequence with a text; a mask says who sees whom.

Queries and text tokens share self-attention; in every second layer the queries also look at the image. The layers are
`transformers`' `Blip2QFormerModel`, and parameters carry the names of its `Blip2ForImageTextRetrieval`
(``query_tokens``, ``qformer.*``, ``embeddings.*``), whose weights load.

Junnan Li, Dongxu Li, Silvio Savarese, Steven Hoi: BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image
Encoders and Large Language Models. ICML 2023, arXiv 2301.12597.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

HIDDEN_SCORE = -10_000.0  # finite: a place that may look nowhere gets an average, not NaN


class QFormer(nn.Module):
    """Queries, and optionally text, -> hidden states.

    Args:
        config: sizes; ``encoder_hidden_size`` is the width of the image features. With ``use_qformer_text_input`` the
            layers and embeddings for text exist.
        num_queries: Q, learned vectors.
    """

    def __init__(self, config: Blip2QFormerConfig, num_queries: int) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries={num_queries}: must be at least 1")
        self.query_tokens = nn.Parameter(torch.randn(1, num_queries, config.hidden_size) * config.initializer_range)
        self.qformer = Blip2QFormerModel(config)
        self.embeddings = Blip2TextEmbeddings(config) if config.use_qformer_text_input else None
        if self.embeddings is not None:
            for table in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
                nn.init.normal_(table.weight, std=config.initializer_range)

    @property
    def num_queries(self) -> int:
        return self.query_tokens.shape[1]

    def forward(
        self,
        image_features: Float[Tensor, "b n dv"],
        text_ids: Int[Tensor, "b t"] | None = None,
        positions: Int[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b s s"] | None = None,
    ) -> Float[Tensor, "b s d"]:
        """Hidden states of the Q queries, then of the T text tokens; S = Q + T.

        Args:
            positions: place of each token in its text; default 0, 1, 2 …
            mask: True = the row's place may look at the column's; default: everybody sees everybody.
        """
        width = self.qformer.config.encoder_hidden_size
        if image_features.ndim != 3 or image_features.shape[2] != width:
            raise ValueError(f"image_features {tuple(image_features.shape)} must be (B, N, {width})")
        queries = self.query_tokens.repeat(len(image_features), 1, 1)  # torch's FLOP counter takes no view of it
        sequence = queries if text_ids is None else torch.cat([queries, self._embed(text_ids, positions)], 1)
        return self._run(sequence, mask, self.num_queries, image_features.to(sequence.dtype))

    def read_text(
        self,
        text_ids: Int[Tensor, "b t"],
        positions: Int[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b t t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Hidden states of a text without queries: what `forward` gives where the mask keeps the two apart."""
        return self._run(self._embed(text_ids, positions), mask, 0, None)

    def _embed(self, text_ids: Tensor, positions: Tensor | None) -> Float[Tensor, "b t d"]:
        if self.embeddings is None:
            raise ValueError("text_ids given to a Q-Former without text: set use_qformer_text_input=True in its config")
        longest = self.qformer.config.max_position_embeddings
        if text_ids.ndim != 2 or text_ids.shape[1] > longest:
            raise ValueError(f"text_ids {tuple(text_ids.shape)} must be (B, T), T at most {longest}: shorten the texts")
        if positions is None:
            positions = torch.arange(text_ids.shape[1], device=text_ids.device)[None]
        return self.embeddings.word_embeddings(text_ids) + self.embeddings.position_embeddings(positions)

    def _run(
        self, sequence: Tensor, mask: Tensor | None, queries: int, image_features: Tensor | None
    ) -> Float[Tensor, "b s d"]:
        """The layers alone: the model's own forward would take a mask of padding only."""
        size = (*sequence.shape[:2], sequence.shape[1])
        if mask is not None and mask.shape != size:
            raise ValueError(f"mask {tuple(mask.shape)} must be {size}, a row and a column for each query and token")
        hidden_score = None if mask is None else (HIDDEN_SCORE * ~mask.bool()[:, None]).to(sequence.dtype)
        start = self.qformer.dropout(self.qformer.layernorm(sequence))
        return self.qformer.encoder(
            start, attention_mask=hidden_score, encoder_hidden_states=image_features, query_length=queries
        ).last_hidden_state
