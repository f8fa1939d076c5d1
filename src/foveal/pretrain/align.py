"""ALIGN: a plain dual encoder on raw alt-texts, where four times the pairs make up for the noise among them.

    v̂ = norm(mean over h, w of the image map),  t̂ = norm(W h_[CLS] + b)
    ℓ = v̂ t̂ᵀ / τ                                 τ learned directly, one for both directions
    q = (1 − ε) · onehot + ε / G                   G texts of all devices, ε = 0.1
    loss = mean_i −Σ_j q_j log softmax_j(ℓ_i·)  +  the same on the transpose       (a sum, not a mean)

`frequency_filter` is all the cleaning there is. `compose_query` adds words to a picture or takes them away, `retrieve`
looks for the result in a gallery.

Chao Jia, Yinfei Yang, Ye Xia, et al.: Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
Supervision. ICML 2021, arXiv 2102.05918.

Departures: ``clamp_`` keeps τ above 1e-3. transformers' `AlignModel` averages the two directions and so reports exactly
half of this loss.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import (
    ContrastiveOutput,
    check_pairs,
    finite_loss,
    full_precision,
    gathered_pairs,
    pair_scores,
    positive_scale,
    rounded,
    unit_pairs,
)

if TYPE_CHECKING:
    from transformers import AlignModel

_CHUNK = 1024  # queries whose scores against the whole gallery are held at once

# Loss -----------------------------------------------------------------------------------------------------------------


def align_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    temperature: float | Tensor,
    *,
    label_smoothing: float = 0.1,
    all_image_features: Float[Tensor, "g d"] | None = None,
    all_text_features: Float[Tensor, "g d"] | None = None,
    rank: int = 0,
) -> ContrastiveOutput:
    """The sum of both directions; features are normalised here and scored in float32 or better.

    Args:
        temperature: positive divisor of the cosines, a float or a 0-d tensor (which gets a gradient).
        label_smoothing: ε in [0, 1), spread over all G columns.
        all_image_features, all_text_features: the features of all devices (see `gather_features`); the loss is then
            that of this device's B rows against all G columns.
        rank: place of this device's rows: they are rows rank·B … rank·B + B − 1 of the gathered ones.

    Raises ValueError for shapes that do not fit, a temperature or smoothing out of range, and non-finite features.
    """
    rows = unit_pairs(image_features, text_features, all_image_features, all_text_features)
    return _align(*rows, rank, temperature, label_smoothing)


def _align(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g d"],
    rank: int,
    temperature: float | Tensor,
    label_smoothing: float,
) -> ContrastiveOutput:
    """The loss of unit rows, see `pair_scores`."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
    scale = 1 / positive_scale(temperature, like=image, name="temperature")
    per_image, per_text, own = pair_scores(image, text, all_image, all_text, scale, rank)
    with full_precision(image):
        image_to_text = F.cross_entropy(per_image, own, label_smoothing=label_smoothing)
        text_to_image = F.cross_entropy(per_text, own, label_smoothing=label_smoothing)
    inputs = {"image_features": image, "text_features": text}
    inputs |= {"all_image_features": all_image, "all_text_features": all_text}
    loss = finite_loss(image_to_text + text_to_image, **inputs)
    return ContrastiveOutput(loss, image_to_text, text_to_image, per_image, per_text)


class ALIGNObjective(nn.Module):
    """What ALIGN learns on top of its two towers: τ and the affine map of the text side. Gathers over all processes.

    State-dict keys are those of transformers' `AlignModel`: temperature, text_projection.weight, text_projection.bias.
    After every optimiser step call `clamp_`.

    Args:
        image_dim: channels C of the image map; the image side has no projection.
        text_dim: width of the text tower's hidden states.
        temperature_init: τ itself; 1 from scratch, the checkpoint's value for fine-tuning.
    """

    def __init__(
        self, image_dim: int, text_dim: int, temperature_init: float = 1.0, label_smoothing: float = 0.1
    ) -> None:
        super().__init__()
        for name, width in (("image_dim", image_dim), ("text_dim", text_dim)):
            if width < 1:
                raise ValueError(f"{name}={width}: must be at least 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
        initial = positive_scale(temperature_init, like=torch.empty(()), name="temperature_init")
        self.label_smoothing = label_smoothing
        self.temperature = nn.Parameter(initial.detach().clone())
        self.text_projection = nn.Linear(text_dim, image_dim)

    def embed_image(self, x: Float[Tensor, "b c *hw"]) -> Float[Tensor, "b c"]:
        """Unit rows of a feature map (B, C, h, w), averaged over h and w, or of pooled features (B, C)."""
        width = self.text_projection.out_features
        if x.ndim not in (2, 4) or x.shape[1] != width or 0 in x.shape:
            wanted = f"(B, {width}, h, w) or (B, {width}), as image_dim={width} says"
            raise ValueError(f"image features {tuple(x.shape)} must be {wanted}")
        pooled = x if x.ndim == 2 else x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3))
        return unit_rows(pooled)

    def embed_text(self, h: Float[Tensor, "b *l dt"]) -> Float[Tensor, "b c"]:
        """Unit rows of the projected first token of (B, L, Dt), or of first tokens (B, Dt)."""
        width = self.text_projection.in_features
        if h.ndim not in (2, 3) or h.shape[-1] != width or 0 in h.shape:
            wanted = f"(B, L, {width}) or (B, {width}), as text_dim={width} says"
            raise ValueError(f"text hidden states {tuple(h.shape)} must be {wanted}")
        first = h if h.ndim == 2 else h[:, 0]
        with full_precision(h):
            return unit_rows(self.text_projection(first.to(self.text_projection.weight.dtype)))

    def forward(
        self, image_features: Float[Tensor, "b c *hw"], text_hidden: Float[Tensor, "b *l dt"]
    ) -> ContrastiveOutput:
        """See `align_loss`. Every process must call this with the same number of rows."""
        rows = gathered_pairs(self.embed_image(image_features), self.embed_text(text_hidden))
        return _align(*rows, self.temperature, self.label_smoothing)

    @torch.no_grad()
    def clamp_(self, minimum: float = 1e-3) -> None:
        """Bring τ back to ``minimum`` or above, in place."""
        self.temperature.clamp_(min=positive_scale(minimum, like=self.temperature, name="minimum"))


class ALIGNModel(nn.Module):
    """Two towers and the objective: transformers' EfficientNetModel and BertModel, or any two of that kind.

    Args:
        image_encoder: called with pixel values, returns (B, C, h, w) or (B, C), or an object with that as
            ``last_hidden_state``.
        text_encoder: called with input_ids= and attention_mask=, returns (B, L, Dt), or an object with that as
            ``last_hidden_state``.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, objective: ALIGNObjective) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.objective = image_encoder, text_encoder, objective

    @classmethod
    def from_transformers(cls, model: "AlignModel", label_smoothing: float = 0.1) -> "ALIGNModel":
        """The towers, projection and temperature of an `AlignModel`, shared: training this trains that.

        Embeddings and scores equal its own; the loss is twice its loss, see the top of this file.
        """
        vision: Any = model.config.vision_config
        if vision.pooling_type != "mean":
            raise ValueError(f"model pools by {vision.pooling_type!r}: ALIGN averages, use 'mean'")
        objective = ALIGNObjective(model.projection_dim, model.text_embed_dim, label_smoothing=label_smoothing)
        objective.text_projection, objective.temperature = model.text_projection, model.temperature
        return cls(model.vision_model, model.text_model, objective)

    def encode_image(self, pixel_values: Float[Tensor, "b 3 s t"]) -> Float[Tensor, "b c"]:
        """Unit rows."""
        return self.objective.embed_image(_states(self.image_encoder(pixel_values)))

    def encode_text(
        self, input_ids: Int[Tensor, "b l"], attention_mask: Shaped[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Unit rows. ValueError when a text is longer than the tower reads, or has padding where [CLS] must be."""
        return self.objective.embed_text(self._text_states(input_ids, attention_mask))

    def forward(
        self,
        pixel_values: Float[Tensor, "b 3 s t"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Shaped[Tensor, "b l"] | None = None,
    ) -> ContrastiveOutput:
        """The loss of B pairs."""
        text_states = self._text_states(input_ids, attention_mask)
        return self.objective(_states(self.image_encoder(pixel_values)), text_states)

    def _text_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        longest = getattr(getattr(self.text_encoder, "config", None), "max_position_embeddings", None)
        if input_ids.ndim != 2 or (longest is not None and input_ids.shape[1] > longest):
            wanted = "(B, L)" if longest is None else f"(B, L) with L at most {longest}: truncate in the tokenizer"
            raise ValueError(f"input_ids {tuple(input_ids.shape)} must be {wanted}")
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                shapes = f"{tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}"
                raise ValueError(f"attention_mask {shapes} must have the same shape")
            if hidden := (~attention_mask[:, 0].bool()).nonzero().flatten().tolist():
                raise ValueError(f"attention_mask hides the first token of row {hidden[0]}: [CLS] is there, pad right")
        return _states(self.text_encoder(input_ids=input_ids, attention_mask=attention_mask))


def _states(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.last_hidden_state


# Data -----------------------------------------------------------------------------------------------------------------


def frequency_filter(
    texts: Sequence[str],
    image_ids: Sequence[Hashable],
    sizes: Sequence[tuple[float, float]],
    *,
    min_side: float = 200,
    max_aspect: float = 3.0,
    max_texts_per_image: int = 1000,
    max_images_per_text: int = 10,
    min_words: int = 3,
    max_words: int = 20,
    vocab_size: int = 100_000_000,
) -> Bool[Tensor, " m"]:
    """Which of M raw rows to keep. All counts are over all rows, whether kept or not.

    Args:
        texts: alt-texts, compared as they are; their words are ``text.lower().split()``.
        image_ids: what says that two rows show the same image.
        sizes: (width, height) in pixels.
        min_side: the shorter side must be longer than this.
        max_aspect: longer over shorter side must be below this.
        max_texts_per_image: most distinct texts of one image.
        max_images_per_text: most distinct images of one text.
        min_words, max_words: both inclusive.
        vocab_size: entries of the one table of words and pairs of neighbouring words, most frequent first and then in
            order of appearance, in which all of a text's must stand.
    """
    if not len(texts) == len(image_ids) == len(sizes):
        lengths = f"texts ({len(texts)}), image_ids ({len(image_ids)}) and sizes ({len(sizes)})"
        raise ValueError(f"{lengths} must have one entry for each row")
    ids: Sequence[Hashable] = image_ids.tolist() if hasattr(image_ids, "tolist") else image_ids  # tensors hash by place
    texts_of, images_of = defaultdict[Hashable, set[str]](set), defaultdict[str, set[Hashable]](set)
    counts = Counter[str]()
    for text, image in zip(texts, ids, strict=True):
        texts_of[image].add(text)
        images_of[text].add(image)
        counts.update(_ngrams(text.lower().split()))
    common = {entry for entry, _ in counts.most_common(vocab_size)}

    def good_image(image: Hashable, size: Sequence[float]) -> bool:
        short, long = sorted(map(float, size))
        shaped = short > max(min_side, 0) and long / short < max_aspect
        return shaped and len(texts_of[image]) <= max_texts_per_image

    def good_text(text: str) -> bool:
        words = text.lower().split()
        usual = len(images_of[text]) <= max_images_per_text and min_words <= len(words) <= max_words
        return usual and common.issuperset(_ngrams(words))

    rows = zip(texts, ids, sizes, strict=True)
    kept = [good_image(image, size) and good_text(text) for text, image, size in rows]
    return torch.tensor(kept, dtype=torch.bool)


def _ngrams(words: Sequence[str]) -> Iterator[str]:
    """Words, then pairs of neighbours. No word holds a blank, so that a pair is never taken for a word."""
    yield from words
    yield from map(" ".join, pairwise(words))


# Search ---------------------------------------------------------------------------------------------------------------


def compose_query(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    *,
    operation: str = "add",
    image_weight: float = 1.0,
    text_weight: float = 2.0,
) -> Float[Tensor, "b d"]:
    """norm(w_i · v̂ ± w_t · t̂), unit rows: pictures to which the texts are added ("add") or taken away ("subtract").

    Raises ValueError for an unknown operation, features that do not pair up or are not finite, and a picture and text
    that cancel.
    """
    if operation not in ("add", "subtract"):
        raise ValueError(f"operation={operation!r}: choose add or subtract")
    check_pairs(image_features, text_features)
    sign = 1 if operation == "add" else -1
    query = image_weight * unit_rows(image_features) + sign * text_weight * unit_rows(text_features)
    if not bool(query.isfinite().all()):
        raise ValueError("image_features or text_features hold NaN or infinity: check the encoders' output")
    if bool((query == 0).all(1).any()):
        raise ValueError(f"row {int((query == 0).all(1).int().argmax())}: image and text cancel, change the weights")
    return unit_rows(query)


def retrieve(
    query: Float[Tensor, "q d"],
    gallery: Float[Tensor, "m d"],
    k: int,
    *,
    exclude: Int[Tensor, " q"] | Sequence[int] | None = None,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The k rows of the gallery with the largest cosine, best first; ties go to the lower index.

    Cosines are taken in float64 and rounded to multiples of 2⁻³⁰, so that equal rows do tie.

    Args:
        exclude: for each query an index that is left out, such as the place of the picture it was made from. k is then
            at most M − 1.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        shapes = f"query {tuple(query.shape)} and gallery {tuple(gallery.shape)}"
        raise ValueError(f"{shapes} must be (Q, D) and (M, D)")
    available = len(gallery) - (exclude is not None)
    if not 1 <= k <= available:
        raise ValueError(f"k={k}: must be in [1, {available}], the rows of the gallery that are not excluded")
    hidden = None if exclude is None else torch.as_tensor(exclude, device=gallery.device)
    if hidden is not None:
        places = torch.arange(len(gallery), device=gallery.device)
        if hidden.shape != query.shape[:1] or not bool(torch.isin(hidden, places).all()):
            raise ValueError(f"exclude {hidden.tolist()} must hold {len(query)} indices in [0, {len(gallery)})")
    for name, features in (("query", query), ("gallery", gallery)):
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: check the encoders' output")
    found, rows, parts = [], unit_rows(gallery.double()), unit_rows(query.double()).split(_CHUNK)
    left_out = [None] * len(parts) if hidden is None else hidden.long().split(_CHUNK)
    for part, left in zip(parts, left_out, strict=True):
        scores = rounded(part @ rows.T)  # autocast leaves float64 alone
        if left is not None:
            scores = scores.scatter(1, left[:, None], float("-inf"))
        best = scores.sort(dim=1, descending=True, stable=True)  # topk promises nothing about ties
        found.append((best.values[:, :k], best.indices[:, :k]))
    values, indices = zip(*found, strict=True)
    wide = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    return torch.cat(values).to(wide), torch.cat(indices)
