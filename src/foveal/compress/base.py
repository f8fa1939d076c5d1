"""What reducers of visual tokens share: how many to keep, what they cost, what one sees at a decoder layer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.scores import instruction_attention

Rope = tuple[Tensor, Tensor]
"""cos and sin of the rotary positions, each (1 or B, L, d); older transformers put the 3 axes of mRoPE in front."""


def keep_count(n: int, ratio: float) -> int:
    """How many of ``n`` tokens a share of ``ratio`` keeps: min(n, ⌊n·ratio + 1e-9⌋).

    Raises ValueError for a negative ``n`` or a ``ratio`` outside [0, 1].
    """
    if n < 0:
        raise ValueError(f"n={n}: a number of tokens cannot be negative")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}: the share of tokens to keep must lie in [0, 1]")
    return int(min(n, math.floor(n * ratio + 1e-9)))


def visual_flops(tokens_per_layer: Iterable[int], hidden_size: int, intermediate_size: int) -> float:
    """Multiply–adds that decoder layers spend on n visual tokens each: Σ 4nd² + 2n²d + 3ndm.

    d is ``hidden_size`` and m ``intermediate_size`` (gated feed-forward). This is the papers' formula;
    `PrefillReducer.report` counts what a model really did.
    """
    d, m = int(hidden_size), int(intermediate_size)  # numpy's and torch's small integers would overflow
    return float(sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in map(int, tokens_per_layer)))


@dataclass(frozen=True)
class Tokens:
    """The sequence as one decoder layer gets it; padding slots have ``valid`` False."""

    columns: Int[Tensor, "b l"]
    """Column of ``input_ids`` that each token came from."""
    valid: Bool[Tensor, "b l"]
    is_image: Bool[Tensor, "b l"]
    """Image and video tokens."""
    labels: Int[Tensor, "b l"] | None


@dataclass
class LayerInput:
    """What enters a decoder layer during a prefill."""

    layer: int
    module: Any
    """The decoder layer itself."""
    hidden: Float[Tensor, "b l d"]
    """A reducer that merges tokens puts the merged rows here before it names the columns to keep."""
    rope: Rope
    tokens: Tokens
    n_image: list[int]
    """Image tokens of each sample before anything was dropped."""
    features: list[Tensor] | None
    """Per image: the very tensors of ``get_image_features(...).pooler_output``, in the order of their placeholders."""
    spend: Callable[[int], None] = lambda flops: None
    """Takes FLOPs that the ranking costs, for the report; `queries_and_keys` accounts for its own."""
    previous: "LayerInput | None" = None
    """What the layer before processed, for reducers with ``looks_back``."""
    cache: Any = None
    """Where ``previous`` has put its keys; None when the prefill keeps none, and at the layer that is yet to run."""
    query: Float[Tensor, "b l hd"] | None = None
    """What the layer's ``q_proj`` has made of ``hidden``; None when it was not overheard, or is yet to run."""

    def sample(self, sample: int) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
        """Where the n valid tokens of one sample stand in the sequence, and which of them are image tokens."""
        places = self.tokens.valid[sample].nonzero()[:, 0]
        return places, self.tokens.is_image[sample, places]

    def images(self) -> list[tuple[int, Int[Tensor, " n"]]]:
        """Per image, in the order of ``features``: its sample, and where its n tokens stand. Only before any drop.

        Raises ValueError when features and tokens differ in number, as with a video or without the vision side.
        """
        samples, places = self.tokens.is_image.nonzero(as_tuple=True)
        sizes = [len(feature) for feature in self.features or ()]
        if sum(sizes) != len(places):
            raise ValueError(
                f"input_ids holds {len(places)} image tokens, the images have {sum(sizes)} features; pass images alone "
                "(no video), through pixel_values"
            )
        found = []
        for owner, own in zip(samples.split(sizes), places.split(sizes), strict=True):
            if len(owner.unique()) > 1:
                raise ValueError(
                    "an image has other than its own number of tokens; before transformers 5.24 beam search mixes up "
                    "several images of a prompt: search without beams, or update"
                )
            found += [(int(owner[0]), own)] if len(own) else []
        return found

    def attention_from(self, sample: int, rows: Int[Tensor, " q"]) -> Float[Tensor, " n"]:
        """Causal attention of this layer that each of a sample's n valid tokens receives from those at ``rows``.

        Mean over heads and rows, softmax over all n, in float32.
        """
        query, key = self.queries_and_keys(sample, rows)
        self.spend(2 * query.numel() * key.shape[1])
        columns = torch.arange(key.shape[1], device=key.device)
        return instruction_attention(query, key, columns <= rows.to(key.device)[:, None]).to(rows.device)

    @torch.no_grad()
    def queries_and_keys(
        self, sample: int, rows: Int[Tensor, " q"] | None = None
    ) -> tuple[Float[Tensor, "h q d"], Float[Tensor, "hkv n d"]]:
        """Rotated queries of ``rows`` and keys of all n valid tokens of one sample, as in this layer's own attention.

        ``rows`` count among the valid tokens; None takes all. query · key / √d are the layer's logits. The layer runs
        its own kernel, untouched. Keys that it has left in the cache are read there; the rest is projected again.
        """
        attention = self.module.self_attn
        places = self.tokens.valid[sample].nonzero()[:, 0].to(self.hidden.device)
        key = self._stored_keys(sample, places)
        if key is None:
            key = self._project("k", sample, places)
        query = self._project("q", sample, places if rows is None else places[rows.to(places.device)])
        usual = query.shape[-1] ** -0.5
        scaling = getattr(attention, "scaling", usual)
        return query if math.isclose(scaling, usual) else query * (scaling / usual), key

    def _stored_keys(self, sample: int, places: Int[Tensor, " n"]) -> Float[Tensor, "hkv n d"] | None:
        """The keys in the cache, if the layer has run and the cache holds them as they are (not quantized, say)."""
        layers = [] if self.cache is None else self.cache.layers
        keys = layers[self.layer].keys if self.layer < len(layers) else None
        if not isinstance(keys, Tensor) or keys.ndim != 4 or keys.shape[::2] != self.hidden.shape[:2]:
            return None
        return keys[sample].detach()[:, places.to(keys.device)].to(next(self.module.parameters()).device)

    def _project(self, which: str, sample: int, places: Int[Tensor, " m"]) -> Float[Tensor, "heads m d"]:
        """Queries or keys of one sample's tokens at ``places``, by the layer's own norm, projection and positions."""
        device = next(self.module.parameters()).device  # a model may be spread over several
        attention, places = self.module.self_attn, places.to(device)
        if which == "q" and self.query is not None:
            projected = self.query[sample, places]
        else:
            x = self.module.input_layernorm(self.hidden[sample, places.to(self.hidden.device)].detach().to(device))
            projected = getattr(attention, f"{which}_proj")(x)
            self.spend(2 * x.shape[-1] * projected.numel())
        cos, sin = (_of_sample(part.to(device), sample, attention)[places] for part in self.rope)
        return _rotate(_heads(attention, which, projected), cos, sin)


def _heads(attention: Any, which: str, projected: Float[Tensor, "n hd"]) -> Float[Tensor, "h n d"]:
    """One after the other, with the per-head norm that some decoders have."""
    heads = projected.view(len(projected), -1, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(0, 1)


def _rotate(x: Float[Tensor, "h n d"], cos: Float[Tensor, "n d"], sin: Float[Tensor, "n d"]) -> Float[Tensor, "h n d"]:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _of_sample(part: Tensor, sample: int, attention: Any) -> Float[Tensor, "l d"]:
    """cos or sin of one sample; the three axes of mRoPE are folded by their sections where the model left it open."""
    part = part[..., min(sample, part.shape[-3] - 1), :, :]
    if part.ndim == 2:
        return part
    sections = attention.config.rope_parameters["mrope_section"] * 2
    return torch.cat([chunk[axis % 3] for axis, chunk in enumerate(part.split(sections, -1))], -1)
