"""NEVLP's bridge: a Q-Former that reads [queries; concepts; text] under the mask of its task, and the way into an LLM.

Who may look at whom (rows look at columns; ≤: a text token at itself and what stands before it):

              nitc                 citg                citm
           q   c   t            q   c   t            q   c   t
    q      x   .   .            x   .   .            x   x   x
    c      .   .   .            x   x   .            x   x   x
    t      .   .   x            x   x   ≤            x   x   x

See `foveal.pretrain.nevlp`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, PreTrainedModel

from foveal.nn.qformer import QFormer
from foveal.nn.word_head import TiedWordHead
from foveal.pretrain.base_fusion import IGNORED

TASKS = ("nitc", "citg", "citm")


def build_attention_mask(
    task: str, num_queries: int, concept_mask: Bool[Tensor, "b c"], text_mask: Bool[Tensor, "b t"]
) -> Bool[Tensor, "b s s"]:
    """Rows may look at columns where True; S = Q + C + T. Rows and columns of padding are False throughout.

    ``task``: nitc, citg or citm. Raises ValueError for others, and for masks that do not fit.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown: choose one of {', '.join(TASKS)}")
    if num_queries < 1 or concept_mask.ndim != 2 or text_mask.ndim != 2 or len(concept_mask) != len(text_mask):
        shapes = f"concept_mask {tuple(concept_mask.shape)}, text_mask {tuple(text_mask.shape)}"
        raise ValueError(f"num_queries={num_queries}, {shapes}: must be at least 1, (B, C) and (B, T)")
    queries = text_mask.new_ones(len(text_mask), num_queries, dtype=torch.bool)
    valid = torch.cat([queries, concept_mask.bool(), text_mask.bool()], 1)
    size, start = valid.shape[1], num_queries + concept_mask.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool, device=text_mask.device)
    if task == "citg":
        allowed[:num_queries, num_queries:] = False
        allowed[num_queries:start, start:] = False
        allowed[start:, start:] = torch.ones_like(allowed[start:, start:]).tril()
    elif task == "nitc":
        allowed[:start, num_queries:] = False
        allowed[num_queries:start] = False
        allowed[start:, :start] = False
    return allowed & valid[:, :, None] & valid[:, None]


class ConceptQFormer(QFormer):
    """The bridge and its heads. A text starts with a start token and is padded on the right; so are concepts.

    Args:
        dim, depth, heads: width, layers and heads; the defaults are BERT-base.
        num_queries: Q.
        vision_dim: width of the image features.
        vocab_size: words of the tokenizer.
        cross_every: the queries look at the image in layers 0, ``cross_every``, 2 · ``cross_every`` …
        embed_dim: width of the vectors that are compared.
        max_positions: longest concepts + text.
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_queries: int = 32,
        vision_dim: int = 1408,
        vocab_size: int = 30522,
        cross_every: int = 2,
        *,
        embed_dim: int = 256,
        max_positions: int = 512,
        dropout: float = 0.1,
    ) -> None:
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads}: must be at least 1 and divide dim={dim}")
        if cross_every < 1 or depth < 1:
            raise ValueError(f"cross_every={cross_every}, depth={depth}: both must be at least 1")
        config = Blip2QFormerConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * dim,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=max_positions,
            cross_attention_frequency=cross_every,
            encoder_hidden_size=vision_dim,
            use_qformer_text_input=True,
        )
        super().__init__(config, num_queries)
        self.vision_projection = nn.Linear(dim, embed_dim)
        self.text_projection = nn.Linear(dim, embed_dim)
        self.itm_head = nn.Linear(dim, 2)
        assert self.embeddings is not None
        self.cls = nn.ModuleDict({"predictions": TiedWordHead(self.embeddings.word_embeddings)})

    def contrast(
        self,
        image_features: Float[Tensor, "b n dv"],
        text_ids: Int[Tensor, "b t"],
        text_mask: Bool[Tensor, "b t"],
    ) -> tuple[Float[Tensor, "b q e"], Float[Tensor, "b e"]]:
        """Vectors of the queries and of the text (its start token), not normalised. Neither side sees the other."""
        text_mask = text_mask.bool()
        seen = text_mask[:, :, None] & text_mask[:, None]
        text = self.read_text(text_ids, _places(text_mask), seen)[:, 0]
        return self.vision_projection(self(image_features)), self.text_projection(text)

    def match(
        self,
        image_features: Float[Tensor, "b n dv"],
        text_ids: Int[Tensor, "b t"],
        text_mask: Bool[Tensor, "b t"],
        concept_ids: Int[Tensor, "b c"],
        concept_mask: Bool[Tensor, "b c"],
    ) -> Float[Tensor, "b q 2"]:
        """Every query's scores of (no match, match)."""
        hidden = self._read("citm", image_features, text_ids, text_mask, concept_ids, concept_mask)
        return self.itm_head(hidden[:, : self.num_queries])

    def words(
        self,
        image_features: Float[Tensor, "b n dv"],
        text_ids: Int[Tensor, "b t"],
        text_mask: Bool[Tensor, "b t"],
        concept_ids: Int[Tensor, "b c"],
        concept_mask: Bool[Tensor, "b c"],
    ) -> Float[Tensor, "b c_plus_t v"]:
        """Scores of the next word at each place of [concepts; text]."""
        hidden = self._read("citg", image_features, text_ids, text_mask, concept_ids, concept_mask)
        return self.cls["predictions"](hidden[:, self.num_queries :])

    def _read(
        self,
        task: str,
        image_features: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        concept_ids: Tensor,
        concept_mask: Tensor,
    ) -> Float[Tensor, "b s d"]:
        ids, valid = torch.cat([concept_ids, text_ids], 1), torch.cat([concept_mask, text_mask], 1).bool()
        mask = build_attention_mask(task, self.num_queries, concept_mask, text_mask)
        return self(image_features, ids, _places(valid), mask)


def _places(valid: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Places counted over valid tokens alone, so that the amount of padding changes nothing."""
    return (valid.long().cumsum(1) - 1).clamp_min(0)


class VisualPrefix(nn.Module):
    """Query outputs -> a soft prefix in the embedding space of an LLM (stage 2)."""

    def __init__(self, bridge_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(bridge_dim, llm_dim)

    def forward(self, query: Float[Tensor, "b q d"]) -> Float[Tensor, "b q dl"]:
        if query.ndim != 3 or query.shape[2] != self.proj.in_features:
            raise ValueError(f"query {tuple(query.shape)} must be (B, Q, {self.proj.in_features})")
        return self.proj(query)


def prefix_lm_loss(
    language_model: PreTrainedModel,
    prefix: Float[Tensor, "b q dl"],
    input_ids: Int[Tensor, "b t"],
    attention_mask: Bool[Tensor, "b t"],
) -> Float[Tensor, ""]:
    """Language-modelling loss of the text after the prefix, mean over its tokens (padding on the right).

    Any causal LM of transformers serves. Freeze it (``requires_grad_(False)``): the gradient still reaches the prefix.
    """
    words = language_model.get_input_embeddings()(input_ids)
    if prefix.ndim != 3 or len(prefix) != len(words) or prefix.shape[2] != words.shape[2]:
        raise ValueError(f"prefix {tuple(prefix.shape)} must be ({len(words)}, Q, {words.shape[2]})")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} must be like input_ids {tuple(input_ids.shape)}"
        )
    seen = torch.cat([attention_mask.new_ones(prefix.shape[:2]), attention_mask], 1)
    silent = input_ids.new_full(prefix.shape[:2], IGNORED)
    labels = torch.cat([silent, input_ids.masked_fill(~attention_mask.bool(), IGNORED)], 1)
    inputs = torch.cat([prefix.to(words.dtype), words], 1)
    return language_model(inputs_embeds=inputs, attention_mask=seen.long(), labels=labels).loss
