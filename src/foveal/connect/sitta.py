"""SITTA: caption images with a frozen language model and a closed-form map, without any gradient.

A linear map takes the embedding space of a frozen vision model to the *input embeddings* of a language model. The words
nearest to the mapped image are written in front of a prompt, and the model continues (see `sitta_captioner`).

    Ỹ = standardised embeddings of the whole vocabulary             X̃ = standardised sources (images, words or classes)
    W = fit_linear_map({(x̃_i, ỹ_t) : t a token of source i})       ols, ridge, procrustes, robust_procrustes
    z = ((f − mean) / std) W                                         for a query feature f
    words = the first k distinct strings among the 50 tokens with the largest cos(z, ỹ)

Sources can be captioned images, the tokens themselves through a text encoder (`prompted_embeddings`), or, with neither
text encoder nor captions at hand, the weight rows of an image classifier with their class names (`class_name_pairs`,
`soft_prototype`): that last one is ours, not the paper's.

Fabian Paischer, Thomas Adler, Markus Hofmarcher, Sepp Hochreiter: SITTA: A Semantic Image-Text Alignment for Image
Captioning. 2023, arXiv 2307.05591 (version 1; later versions describe another method).

Departures: captions are tokenised without special tokens (the authors' files keep a begin token among the pairs).
`INSTRUCTION` writes the retrieved tokens as they are, so that one without a leading blank sticks to what stands before
it; the authors join the decoded words with blanks.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.connect.sitta_captioner import INSTRUCTION as INSTRUCTION
from foveal.connect.sitta_captioner import PAPER as PAPER
from foveal.connect.sitta_captioner import WORKED_EXAMPLES as WORKED_EXAMPLES
from foveal.connect.sitta_captioner import PromptStyle as PromptStyle
from foveal.connect.sitta_captioner import SittaCaptioner as SittaCaptioner
from foveal.connect.sitta_captioner import clip_score as clip_score
from foveal.connect.sitta_captioner import permuted_prompts as permuted_prompts
from foveal.connect.sitta_captioner import prompt_ids as prompt_ids
from foveal.connect.sitta_captioner import rank_captions as rank_captions
from foveal.connect.sitta_retrieval import ndcg as ndcg
from foveal.connect.sitta_retrieval import retrieve_from_units, unit_rows
from foveal.connect.sitta_retrieval import retrieve_tokens as retrieve_tokens
from foveal.nn.linear_maps import fit_linear_map as fit_linear_map
from foveal.nn.linear_maps import standardize as standardize

# Pairs ----------------------------------------------------------------------------------------------------------------


def expand_pairs(
    features: Float[Tensor, "n dv"], token_ids: Sequence[Sequence[int]], token_embeddings: Float[Tensor, "v dl"]
) -> tuple[Float[Tensor, "m dv"], Float[Tensor, "m dl"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """One row for each (source, token) pair: X, Y, index of the source, id of the token.

    Nothing is standardised here: do it before, or sources with many tokens weigh more in the statistics.
    """
    if len(features) != len(token_ids):
        raise ValueError(f"token_ids has {len(token_ids)} lists for {len(features)} rows of features")
    tokens = torch.tensor([t for ids in token_ids for t in ids], dtype=torch.long, device=features.device)
    if len(tokens) == 0:
        raise ValueError("token_ids holds no token at all: there is nothing to fit")
    if int(tokens.min()) < 0 or int(tokens.max()) >= len(token_embeddings):
        raise ValueError(
            f"token_ids holds {int(tokens.min())}..{int(tokens.max())}, embeddings 0..{len(token_embeddings) - 1}"
        )
    counts = torch.tensor([len(ids) for ids in token_ids], device=features.device)
    source = torch.arange(len(features), device=features.device).repeat_interleave(counts)
    return features[source], token_embeddings[tokens.to(token_embeddings.device)], source, tokens


def caption_words(text: str, stopwords: Collection[str]) -> list[str]:
    """The content words of an image's joined captions: distinct, sorted, case kept, '.' and ',' deleted.

    Stop words (lower case) are dropped before the punctuation goes: "a." survives as "a", as in the authors' data.
    """
    kept = " ".join(word for word in text.split() if word.lower() not in stopwords)
    return sorted(set(kept.replace(".", "").replace(",", "").split()))


def prompted_embeddings(
    words: Sequence[str], templates: Sequence[str], encode_text: Callable[[list[str]], Float[Tensor, "n d"]]
) -> Float[Tensor, "n d"]:
    """Lexical matching: each word's text embedding, averaged over prompt templates (strings with one ``{}``).

    ``encode_text`` is called once per template with all words and batches as it likes; its outputs are not normalised.
    """
    if not words or not templates:
        raise ValueError(f"words ({len(words)}) and templates ({len(templates)}) must not be empty")
    if bad := [template for template in templates if "{}" not in template]:
        raise ValueError(f"templates[...]={bad[0]!r} has no '{{}}' for the word")
    total = encode_text([templates[0].format(word) for word in words])
    for template in templates[1:]:
        total = total + encode_text([template.format(word) for word in words])
    return total / len(templates)


def class_name_pairs(
    names: Sequence[str],
    tokenize: Callable[[str], list[int]],
    whole_word: Bool[Tensor, " v"] | Sequence[bool] | None = None,
    stopwords: Collection[str] = ("of", "the", "a", "an", "or", "and"),
) -> list[list[int]]:
    """Token ids of the words of each class name: distinct, sorted, optionally only ids with ``whole_word[id]``.

    Anything but letters and blanks separates words; each word is lower-cased and tokenised with a blank in front.
    """
    pairs = []
    for name in names:
        words = [word.lower() for word in re.sub(r"[^A-Za-z ]", " ", name).split()]
        ids = {token for word in words if word not in stopwords for token in tokenize(f" {word}")}
        pairs.append(sorted(token for token in ids if whole_word is None or bool(whole_word[token])))
    return pairs


def whole_words(tokenizer: Any, size: int, letters: int = 3) -> Bool[Tensor, " size"]:
    """Which of the first ``size`` ids are a lower-case English word of at least ``letters`` letters after a blank.

    Knows the blank signs of byte-level ("Ġ") and SentencePiece ("▁") vocabularies.
    """
    pattern = re.compile(rf"[Ġ▁][a-z]{{{letters},}}")
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: len(tokens)] = torch.tensor([token is not None and bool(pattern.fullmatch(token)) for token in tokens])
    return mask


def soft_prototype(
    features: Float[Tensor, "b dv"],
    weight: Float[Tensor, "k dv"],
    bias: Float[Tensor, " k"],
    prototypes: Float[Tensor, "k d"] | None = None,
    temperature: float = 2.0,
) -> Float[Tensor, "b d"]:
    """Class prototypes mixed by the classifier's own belief softmax((f Wᵀ + b) / temperature).

    This takes an image to the space of the class rows a map was fitted on; ``prototypes`` defaults to ``weight``.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"features {tuple(features.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)} "
            "must be (B, Dv), (K, Dv), (K,)"
        )
    prototypes = weight if prototypes is None else prototypes
    if len(prototypes) != len(weight):
        raise ValueError(f"prototypes has {len(prototypes)} rows for {len(weight)} classes")
    return F.linear(features, weight, bias).div(temperature).softmax(-1) @ prototypes


# The map --------------------------------------------------------------------------------------------------------------


class SittaMapper:
    """Fits the map and takes features to the LM's word space.

    Args:
        method, alpha, eps, iters: see `foveal.nn.linear_maps.fit_linear_map`.

    After `fit`: ``W`` (Dv,Dl), ``source_mean``, ``source_std`` (Dv,), ``target_mean``, ``target_std`` (Dl,), and
    ``targets`` (V,Dl), the standardised embeddings.
    """

    W: Float[Tensor, "dv dl"]
    targets: Float[Tensor, "v dl"]

    def __init__(self, method: str = "ols", alpha: float = 1.0, eps: float = 1e-3, iters: int = 5) -> None:
        self.method, self.alpha, self.eps, self.iters = method, alpha, eps, iters

    @torch.no_grad()
    def fit(
        self,
        sources: Float[Tensor, "n dv"],
        token_ids: Sequence[Sequence[int]],
        token_embeddings: Float[Tensor, "v dl"],
    ) -> "SittaMapper":
        """``token_ids[i]`` are the tokens of source i; ``token_embeddings`` the LM's whole input embedding matrix."""
        embeddings = token_embeddings.detach().to(sources)
        self.targets, self.target_mean, self.target_std = standardize(embeddings)
        scaled, self.source_mean, self.source_std = standardize(sources)
        X, Y, _, _ = expand_pairs(scaled, token_ids, self.targets)
        self.W = fit_linear_map(X, Y, self.method, self.alpha, self.eps, self.iters)
        vars(self).pop("unit_targets", None)
        return self

    @cached_property
    def unit_targets(self) -> Float[Tensor, "v dl"]:
        """``targets`` at length 1, kept for all retrievals."""
        return unit_rows(self.targets)

    def transform(
        self,
        features: Float[Tensor, "b dv"],
        mean: Float[Tensor, " dv"] | None = None,
        std: Float[Tensor, " dv"] | None = None,
    ) -> Float[Tensor, "b dl"]:
        """Features in word space. Give the queries' own ``mean`` and ``std`` when they are of another modality than the
        sources (images, where the map was fitted on words or classes); the default is the sources' statistics."""
        if not hasattr(self, "W"):
            raise ValueError("this SittaMapper has no map yet: call fit first")
        mean, std = self.source_mean if mean is None else mean, self.source_std if std is None else std
        return standardize(features.to(self.W), mean.to(self.W), std.to(self.W))[0] @ self.W

    def retrieve(
        self,
        features: Float[Tensor, "b dv"],
        k: int = 8,
        decode: Callable[[int], str] | None = None,
        pool: int = 50,
        allowed: Bool[Tensor, " v"] | Sequence[int] | None = None,
        mean: Float[Tensor, " dv"] | None = None,
        std: Float[Tensor, " dv"] | None = None,
    ) -> Int[Tensor, "b k"]:
        """The k words nearest to each feature, best first (see `retrieve_tokens`)."""
        return retrieve_from_units(self.transform(features, mean, std), self.unit_targets, k, decode, pool, allowed)


class SittaConnector(nn.Module):
    """A fitted map as a connector: the LM's own embeddings of the k retrieved words are the soft prompt.

    Word choice is discrete, so no gradient reaches the features. The state dict holds the map and its statistics; the
    vocabulary belongs to the language model and is not copied. Arguments after ``k`` are those of
    `SittaMapper.retrieve`.
    """

    weight: Tensor
    mean: Tensor
    std: Tensor
    targets: Tensor
    embedding: Tensor

    def __init__(
        self,
        mapper: SittaMapper,
        embedding: Float[Tensor, "v dl"],
        k: int = 8,
        decode: Callable[[int], str] | None = None,
        pool: int = 50,
        allowed: Bool[Tensor, " v"] | Sequence[int] | None = None,
        mean: Float[Tensor, " dv"] | None = None,
        std: Float[Tensor, " dv"] | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(mapper, "W"):
            raise ValueError("mapper has no map yet: call mapper.fit first")
        if embedding.shape != mapper.targets.shape:
            raise ValueError(f"embedding {tuple(embedding.shape)} must be {tuple(mapper.targets.shape)} as fitted")
        self.k, self.decode, self.pool, self.allowed = k, decode, pool, allowed
        self.register_buffer("weight", mapper.W.clone())  # copies: loading a state dict must not change the mapper
        self.register_buffer("mean", (mapper.source_mean if mean is None else mean).to(mapper.W, copy=True))
        self.register_buffer("std", (mapper.source_std if std is None else std).to(mapper.W, copy=True))
        self.register_buffer("targets", mapper.unit_targets, persistent=False)
        self.register_buffer("embedding", embedding.detach(), persistent=False)

    def forward(self, features: Float[Tensor, "b *n dv"]) -> Float[Tensor, "b k dl"]:
        """Embeddings of the retrieved words; token features (B,N,Dv) are averaged over N first."""
        if features.ndim not in (2, 3) or features.shape[-1] != len(self.weight):
            raise ValueError(
                f"features {tuple(features.shape)} must be (B, Dv) or (B, N, Dv) with Dv = {len(self.weight)}"
            )
        pooled = features if features.ndim == 2 else features.mean(1)
        z = standardize(pooled.to(self.weight), self.mean, self.std)[0] @ self.weight
        return self.embedding[retrieve_from_units(z, self.targets, self.k, self.decode, self.pool, self.allowed)]
