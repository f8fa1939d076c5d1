"""LiMBeR: one affine map from a frozen vision encoder to a frozen text-only language model.

Projected image features are a soft prompt in front of the caption; only the map is trained. If that is enough to
caption, both models hold their concepts in similar shape, and encoders can be compared by *what* gets through the map.

    P = z Wᵀ + b                    z (B,N,Dv) tokens -> (B,N,Dl), or z (B,Dv) pooled -> S prompt vectors each
    input  [dropout(P) ; Emb(caption)]
    loss   cross-entropy of the caption tokens up to and including the first end token, averaged over the batch's tokens

Jack Merullo, Louis Castricato, Carsten Eickhoff, Ellie Pavlick: Linearly Mapping from Image to Text Space.
ICLR 2023, arXiv 2209.15162.

Departures: decoding is greedy (the paper's tables too use temperature 0), and the end token is the caller's to append:
the authors pad with the end token, so that the longest caption of a batch has none.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.connect.base import freeze, greedy_decode, vision_features
from foveal.nn.modes import evaluating


def project_prompt(
    features: Float[Tensor, "b *n dv"],
    weight: Float[Tensor, "rows dv"],
    bias: Float[Tensor, " rows"] | None = None,
    seq_len: int | None = None,
) -> Float[Tensor, "b m dl"]:
    """Soft prompt from token features (B,N,Dv), or from pooled features (B,Dv) when ``seq_len`` is given.

    Pooled: ``weight`` is (S·Dl, Dv) and output s, d is row s·Dl + d of the map. ValueError on shapes that do not fit.
    """
    ndim = 3 if seq_len is None else 2
    if features.ndim != ndim:
        raise ValueError(f"features {tuple(features.shape)} must be {ndim}-d: (B,N,Dv) without seq_len, (B,Dv) with it")
    if weight.ndim != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(f"weight {tuple(weight.shape)} must be (rows, {features.shape[-1]}) to fit the features")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must have one value for each of the {len(weight)} rows of weight")
    projected = F.linear(features, weight, bias)
    if seq_len is None:
        return projected
    if seq_len < 1 or len(weight) % seq_len:
        raise ValueError(f"seq_len={seq_len} must be at least 1 and divide the {len(weight)} rows of weight")
    return projected.unflatten(-1, (seq_len, -1))


def caption_labels(
    prompt_len: int, caption_ids: Int[Tensor, "b l"], eos_id: int, ignore_index: int = -100
) -> Int[Tensor, "b prompt_plus_l"]:
    """Targets for ``[prompt ; caption]``: none on the prompt, none after the first ``eos_id`` (itself a target)."""
    if prompt_len < 0:
        raise ValueError(f"prompt_len={prompt_len}: must not be negative")
    if caption_ids.ndim != 2:
        raise ValueError(f"caption_ids {tuple(caption_ids.shape)} must be (B, L)")
    is_eos = caption_ids == eos_id
    after_first = is_eos.cumsum(1) - is_eos.long() > 0
    caption = caption_ids.masked_fill(after_first, ignore_index)
    return F.pad(caption, (prompt_len, 0), value=ignore_index)


def caption_loss(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all targets of the batch; position t predicts label t + 1.

    Half-precision logits are scored in float32. ValueError when shapes differ or no target is left.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must agree on (B, T)")
    targets = labels[:, 1:]
    if bool((targets == ignore_index).all()):
        raise ValueError(f"labels holds no target after its first position: everything there is {ignore_index}")
    scores = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=ignore_index)


def caption_category(caption: str, names: Sequence[str]) -> int:
    """Index of the class named first in the caption, −1 if none is named.

    Whole words or phrases, any case; of two names that start together the longer one counts.
    """
    mentions = []
    for index, name in enumerate(names):
        words = name.split()
        if not words:
            raise ValueError(f"names[{index}]={name!r} is blank: every class needs a name")
        pattern = r"\s+".join(map(re.escape, words))
        if match := re.search(rf"(?<!\w){pattern}(?!\w)", caption, re.IGNORECASE):
            mentions.append((match.start(), -len(match.group()), index))
    return min(mentions)[2] if mentions else -1


def wu_palmer(parents: Mapping[str, str | None], a: str, b: str) -> float:
    """Wu–Palmer similarity in [0, 1] in a hierarchy given as child -> parent (None at a root, whose depth is 1).

    2·depth(lowest common ancestor) / (depth(a) + depth(b)); 0 without common ancestor. ValueError: unknown name, cycle.
    """

    def ancestors(name: str) -> list[str]:
        """The name, its parent, ... up to the root."""
        chain: list[str] = []
        step: str | None = name
        while step is not None:
            if step not in parents:
                raise ValueError(f"parents knows no {step!r} (looked up for {name!r}): every name needs an entry")
            if step in chain:
                raise ValueError(f"parents has a cycle through {step!r}")
            chain.append(step)
            step = parents[step]
        return chain

    chain_a, chain_b = ancestors(a), ancestors(b)
    common = next((name for name in chain_a if name in chain_b), None)
    depth = 0 if common is None else len(chain_a) - chain_a.index(common)
    return 2 * depth / (len(chain_a) + len(chain_b))


def property_agreement(attributes: Bool[Tensor, "k p"], true: Int[Tensor, " n"], predicted: Int[Tensor, " n"]) -> float:
    """Do wrongly named classes share attributes with the true ones? Mean agreement over the errors; nan without error.

    ``attributes[k]`` are the yes/no properties of class k. Leave out captions that name no class (−1): ValueError.
    """
    attributes, true, predicted = (torch.as_tensor(x) for x in (attributes, true, predicted))
    if attributes.ndim != 2:
        raise ValueError(f"attributes {tuple(attributes.shape)} must be (K classes, P properties)")
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"true {tuple(true.shape)} and predicted {tuple(predicted.shape)} must be (n,) alike")
    for label, ids in (("true", true), ("predicted", predicted)):
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(attributes)):
            raise ValueError(
                f"{label} holds {int(ids.min())}..{int(ids.max())}, attributes has rows 0..{len(attributes) - 1}; "
                "leave out samples without a class"
            )
    wrong = true != predicted
    return (attributes[true[wrong]] == attributes[predicted[wrong]]).double().mean().item()


class LimberConnector(nn.Module):
    """The affine map. Its state dict holds ``proj.weight`` and ``proj.bias`` as the authors' checkpoints do.

    ``seq_len=None``: one prompt vector for each image token; ``seq_len=S``: S vectors from one pooled feature.
    ``layernorm`` adds a LayerNorm(Dl) after the dropout (off in every setting of the paper).
    """

    def __init__(
        self,
        dim_vision: int,
        dim_language: int,
        seq_len: int | None = None,
        dropout: float = 0.1,
        layernorm: bool = False,
    ) -> None:
        super().__init__()
        for label, value in (("dim_vision", dim_vision), ("dim_language", dim_language), ("seq_len", seq_len)):
            if value is not None and value < 1:
                raise ValueError(f"{label}={value}: must be at least 1")
        self.seq_len = seq_len
        self.proj = nn.Linear(dim_vision, dim_language * (seq_len or 1))
        self.dropout = nn.Dropout(dropout)
        self.ln = nn.LayerNorm(dim_language) if layernorm else None

    def forward(self, features: Float[Tensor, "b *n dv"]) -> Float[Tensor, "b m dl"]:
        """Soft prompt in the map's own dtype; ``features`` (B,N,Dv), or (B,Dv) when ``seq_len`` is set."""
        features = features.to(self.proj.weight.dtype)
        prompt = self.dropout(project_prompt(features, self.proj.weight, self.proj.bias, self.seq_len))
        return prompt if self.ln is None else self.ln(prompt)


@dataclass
class LimberOutput:
    """What a training step returns; M prompt vectors, L caption tokens."""

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "b m_plus_l v"]
    labels: Int[Tensor, "b m_plus_l"]
    soft_prompt: Float[Tensor, "b m dl"]


class Limber(nn.Module):
    """A connector between a frozen vision tower and a frozen causal language model.

    Args:
        connector: any module features -> (B,M,Dl); `LimberConnector` for the paper's claim.
        language: a Hugging Face causal LM, or any module with ``get_input_embeddings()`` and the call
            ``language(inputs_embeds=, attention_mask=) -> object with .logits``. It is frozen and kept in eval mode;
            gradients still flow through it to the connector.
        eos_id: id that ends a caption.
        vision: frozen image encoder (see `foveal.connect.base.vision_features`). Without it the inputs are features,
            which is the way to train: the encoder never changes, so encode once.
    """

    def __init__(self, connector: nn.Module, language: nn.Module, eos_id: int, vision: nn.Module | None = None) -> None:
        super().__init__()
        self.connector = connector
        self.language: Any = freeze(language)
        self.vision: Any = None if vision is None else freeze(vision)
        self.eos_id = eos_id

    def train(self, mode: bool = True) -> "Limber":
        """Train mode for the connector only."""
        super().train(mode)
        self.language.eval()
        if self.vision is not None:
            self.vision.eval()
        return self

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The connector's parameters, for the optimiser."""
        return self.connector.parameters()

    def soft_prompt(self, inputs: Tensor) -> Float[Tensor, "b m dl"]:
        """Images (with a vision tower) or features -> prompt vectors in the dtype of the LM's embeddings."""
        if self.vision is not None:
            pooled = getattr(self.connector, "seq_len", None) is not None
            inputs = vision_features(self.vision, inputs, pooled)
        return self.connector(inputs).to(self.language.get_input_embeddings().weight.dtype)

    def forward(
        self,
        features_or_images: Tensor,
        caption_ids: Int[Tensor, "b l"],
        caption_mask: Int[Tensor, "b l"] | None = None,
    ) -> LimberOutput:
        """Loss of the captions given the images. ``caption_ids`` end with ``eos_id`` and are padded on the right."""
        prompt = self.soft_prompt(features_or_images)
        if len(prompt) != len(caption_ids):
            raise ValueError(f"caption_ids has {len(caption_ids)} rows for {len(prompt)} images")
        if caption_mask is None:
            caption_mask = torch.ones_like(caption_ids)
        elif caption_mask.shape != caption_ids.shape:
            raise ValueError(
                f"caption_mask {tuple(caption_mask.shape)} must be that of caption_ids, {tuple(caption_ids.shape)}"
            )
        labels = caption_labels(prompt.shape[1], caption_ids, self.eos_id)
        words = self.language.get_input_embeddings()(caption_ids)
        mask = torch.cat([caption_mask.new_ones(prompt.shape[:2]), caption_mask], 1)
        logits = self.language(inputs_embeds=torch.cat([prompt, words], 1), attention_mask=mask).logits
        return LimberOutput(caption_loss(logits, labels), logits, labels, prompt)

    @torch.no_grad()
    def generate(
        self,
        features_or_images: Tensor,
        prompt_ids: Int[Tensor, "b l"] | Int[Tensor, " l"] | None = None,
        max_new_tokens: int = 20,
    ) -> Int[Tensor, "b t"]:
        """Greedy captions: the new ids only, t ≤ ``max_new_tokens``, filled with ``eos_id`` after a row's end.

        ``prompt_ids`` is text between image and caption, e.g. "A picture of" or a question; (L,) serves every image.
        """
        with evaluating(self):
            prompt = self.soft_prompt(features_or_images)
            if prompt_ids is not None:
                rows = prompt_ids.expand(len(prompt), -1) if prompt_ids.ndim == 1 else prompt_ids
                if rows.ndim != 2 or len(rows) != len(prompt):
                    raise ValueError(f"prompt_ids {tuple(prompt_ids.shape)} must be (L,) or ({len(prompt)}, L)")
                prompt = torch.cat([prompt, self.language.get_input_embeddings()(rows)], 1)
            return greedy_decode(self.language, prompt, max_new_tokens, self.eos_id)
