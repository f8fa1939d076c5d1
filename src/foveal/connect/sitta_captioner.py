"""The second half of SITTA (see `sitta`): from retrieved words to a caption.

The words are written in front of a prompt in several orders, the frozen language model continues each greedily, and the
caption that fits the image best is kept. Everything is done on token ids: all orders have one length, need no padding
and share the key–value cache of whatever text stands in front of the words.

Fabian Paischer et al.: SITTA: A Semantic Image-Text Alignment for Image Captioning. 2023, arXiv 2307.05591.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.connect.base import freeze, greedy_generate

if TYPE_CHECKING:
    from foveal.connect.sitta import SittaMapper

STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """a about above across after again all along also am an and another any are around as at away back be been
        before behind being below beneath beside between both but by can could did do does down each for from front had
        has have he her here him his how i if in inside into is it its just like may me more most my near next no not of
        off on one onto or other our out outside over own same she should so some such than that the their them then
        there these they this those through to together too toward towards two under until up upon very was we were what
        when where which while who with within without would you your""",
    )
)
"""English words that say nothing about what is in a picture."""


@dataclass(frozen=True)
class PromptStyle:
    """How retrieved words become a prompt: ``before`` w1 ``separator`` w2 ``separator`` … ``after``."""

    before: str = ""
    """Text in front of the words, the same for every image."""
    separator: str | None = " "
    """One token after each word; None for nothing."""
    closing: bool = True
    """Is the separator also written after the last word?"""
    after: str = "A picture of"
    stop: str = ".\n"
    """Characters that end a caption."""
    max_new_tokens: int = 67


PAPER = PromptStyle()
"""The paper's prompt for plain language models: "dog  ball  grass  A picture of"."""

INSTRUCTION = PromptStyle(
    before="Generate a caption containing the following words:", separator=None, closing=False, after=""
)
"""The paper's prompt for instruction-tuned language models."""

WORKED_EXAMPLES = PromptStyle(
    before=(
        "Keywords: dog, ball, grass\nCaption: A dog plays with a ball on the grass.\n\n"
        "Keywords: boat, sea, sail, harbor\nCaption: A small boat sails in the harbor.\n\n"
        "Keywords: bread, kitchen, oven\nCaption: Fresh bread on a table in the kitchen.\n\n"
        "Keywords:"
    ),
    separator=",",
    closing=False,
    after="\nCaption:",
    stop='.\n"',
    max_new_tokens=14,
)
"""Three examples first: what small language models need to write one short sentence."""


def permuted_prompts(tokens: Int[Tensor, " k"], n: int, generator: torch.Generator | None = None) -> Int[Tensor, "n k"]:
    """The words in rank order, then n − 1 random orders. Without a generator the orders are those of seed 0."""
    if tokens.ndim != 1 or len(tokens) == 0:
        raise ValueError(f"tokens {tuple(tokens.shape)} must be (k,) with k > 0")
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1 (the rank order)")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    keys = torch.rand(n, len(tokens), generator=generator, device=generator.device)
    keys[0] = torch.arange(len(tokens))
    return tokens[keys.argsort(1).to(tokens.device)]


def prompt_ids(
    prefix: Int[Tensor, "n k"], separator_id: int | None, suffix_ids: Int[Tensor, " s"] | Sequence[int]
) -> Int[Tensor, "n length"]:
    """Each row's words, a separator after every one, then the suffix: (n, 2k + s), or (n, k + s) without separator."""
    if prefix.ndim != 2:
        raise ValueError(f"prefix {tuple(prefix.shape)} must be (n orders, k words)")
    suffix = torch.as_tensor(suffix_ids, dtype=prefix.dtype, device=prefix.device)
    if suffix.ndim != 1:
        raise ValueError(f"suffix_ids {tuple(suffix.shape)} must be (s,)")
    if separator_id is not None:
        prefix = torch.stack([prefix, torch.full_like(prefix, separator_id)], 2).flatten(1)
    return torch.cat([prefix, suffix.expand(len(prefix), -1)], 1)


def rank_captions(image: Float[Tensor, " d"], captions: Float[Tensor, "n d"]) -> tuple[int, Float[Tensor, " n"]]:
    """Index of the caption feature nearest to the (not standardised) image feature, and all cosines."""
    if image.ndim != 1 or captions.ndim != 2 or captions.shape[1] != len(image) or len(captions) == 0:
        raise ValueError(f"image {tuple(image.shape)} and captions {tuple(captions.shape)} must be (D,) and (n > 0, D)")
    cosines = F.normalize(captions, dim=-1) @ F.normalize(image, dim=-1)
    return int(cosines.argmax()), cosines


def clip_score(image: Float[Tensor, " d"], captions: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """CLIP-score as in Hessel et al. (EMNLP 2021, arXiv 2104.08718): 2.5 · max(cos, 0), in [0, 2.5]."""
    return 2.5 * rank_captions(image, captions)[1].clamp_min(0)


class SittaCaptioner:
    """Captions from image features, with a frozen language model of Hugging Face.

    Args:
        mapper: a fitted `SittaMapper`.
        language: causal LM or encoder–decoder with ``generate``; it is frozen.
        tokenizer: its tokenizer.
        rank: (feature (Dv,), captions) -> scores (n,), larger is better. With an image–text encoder:
            ``lambda feature, captions: rank_captions(feature, encode_text(captions))[1]`` as in the paper. The default
            needs none: cosine between the mapped image and the mean embedding of the caption's content words.
        k, n_orders: words and orders; the paper takes 8 and 40 on COCO, 10 and 15 on Flickr30k.
        prompt: `PAPER`, `INSTRUCTION`, `WORKED_EXAMPLES` or your own `PromptStyle`.
        decode: id -> string under which words count as equal; default: the tokenizer's. Its first five letters,
            ``decode(id).strip()[:5]``, leave one of "garden" and "gardening".
        pool, allowed, mean, std: see `SittaMapper.retrieve`.

    Raises ValueError for a separator that is not one token, fewer than one order, and when nothing ends a caption.
    """

    def __init__(
        self,
        mapper: SittaMapper,
        language: nn.Module,
        tokenizer: Any,
        rank: Callable[[Float[Tensor, " dv"], list[str]], Float[Tensor, " n"]] | None = None,
        k: int = 8,
        n_orders: int = 40,
        prompt: PromptStyle = PAPER,
        decode: Callable[[int], str] | None = None,
        pool: int = 50,
        allowed: Bool[Tensor, " v"] | Sequence[int] | None = None,
        mean: Float[Tensor, " dv"] | None = None,
        std: Float[Tensor, " dv"] | None = None,
    ) -> None:
        if n_orders < 1:
            raise ValueError(f"n_orders={n_orders}: must be at least 1 (the rank order)")
        self.mapper, self.tokenizer = mapper, tokenizer
        self.language: Any = freeze(language)
        self.rank = rank or self._word_cosine
        self.k, self.n_orders, self.prompt = k, n_orders, prompt
        self.retrieval: dict[str, Any] = {
            "decode": decode or tokenizer.decode,
            "pool": pool,
            "allowed": allowed,
            "mean": mean,
            "std": std,
        }
        self._before, self._after = self._encode(prompt.before), self._encode(prompt.after)
        self._separator = self._single_token(prompt.separator)
        self._stop = re.compile(f"[{re.escape(prompt.stop)}]" if prompt.stop else "(?!)")  # (?!) never matches
        self._stop_ids = stop_ids(tokenizer, prompt.stop)
        if not self._stop_ids:
            raise ValueError(f"prompt.stop={prompt.stop!r} and a tokenizer without end token: nothing ends a caption")
        self._prefix_cache: Any = None

    def words(self, feature: Float[Tensor, " dv"]) -> list[str]:
        """The k retrieved words, best first."""
        return [self.tokenizer.decode(token).strip() for token in self._retrieve(feature).tolist()]

    @torch.no_grad()
    def caption(
        self, feature: Float[Tensor, " dv"], generator: torch.Generator | None = None
    ) -> tuple[str, list[str], Float[Tensor, " n"]]:
        """Best caption, all distinct candidates (that of the rank order first) and their scores.

        ``generator`` draws the orders (default: seed 0). A model that never writes anything gives ("", [], empty).
        """
        orders = permuted_prompts(self._retrieve(feature), self.n_orders, generator)
        candidates = list(dict.fromkeys(filter(None, self._continue(self._ids(orders)))))
        if not candidates:
            return "", [], torch.empty(0)
        scores = torch.as_tensor(self.rank(feature, candidates))
        if scores.shape != (len(candidates),):
            raise ValueError(f"rank returned shape {tuple(scores.shape)} for {len(candidates)} captions")
        return candidates[int(scores.argmax())], candidates, scores

    def _retrieve(self, feature: Float[Tensor, " dv"]) -> Int[Tensor, " k"]:
        if feature.ndim != 1:
            raise ValueError(f"feature {tuple(feature.shape)} must be the (Dv,) feature of one image")
        return self.mapper.retrieve(feature[None], self.k, **self.retrieval)[0]

    def _ids(self, orders: Int[Tensor, "n k"]) -> Int[Tensor, "n length"]:
        """Whole prompts: text before, words with separators, text after."""
        ids = prompt_ids(orders, self._separator, [])
        if self._separator is not None and not self.prompt.closing:
            ids = ids[:, :-1]
        before, after = (
            torch.tensor(part, dtype=torch.long).expand(len(ids), -1) for part in (self._before, self._after)
        )
        ids = torch.cat([before, ids.cpu(), after], 1)
        if self.language.config.is_encoder_decoder:  # their encoders expect an end token
            ids = F.pad(ids, (0, 1), value=self.tokenizer.eos_token_id)
        return ids.to(self.language.device)

    def _continue(self, ids: Int[Tensor, "n length"]) -> list[str]:
        """What the language model writes after each prompt, cut at the first stop character."""
        decoder_only = not self.language.config.is_encoder_decoder
        options = {self._cache_argument: self._cached_prefix(len(ids))} if decoder_only and self._before else {}
        inputs = {"inputs": ids, "attention_mask": torch.ones_like(ids), **options}
        output = greedy_generate(self.language, self.prompt.max_new_tokens, self._stop_ids, **inputs)
        new = output[:, ids.shape[1] :] if decoder_only else output
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [self._stop.split(text.strip())[0].strip() for text in texts]

    def _cached_prefix(self, rows: int) -> Any:
        """Key–value cache of the text before the words: computed once, copied for every batch of orders."""
        if self._prefix_cache is None:
            from transformers import DynamicCache

            ids = torch.tensor([self._before], device=self.language.device)
            self._prefix_cache = DynamicCache(config=self.language.config)
            self.language(ids, use_cache=True, **{self._cache_argument: self._prefix_cache})  # fills it
        cache = copy.deepcopy(self._prefix_cache)
        cache.batch_repeat_interleave(rows)
        return cache

    @cached_property
    def _cache_argument(self) -> str:
        """Under which name the model takes a cache: later releases of transformers have another and warn of the old."""
        return "cache" if "cache" in inspect.signature(self.language.forward).parameters else "past_key_values"

    def _word_cosine(self, feature: Float[Tensor, " dv"], captions: list[str]) -> Float[Tensor, " n"]:
        """Cosine of the mapped image and the mean (standardised) embedding of each caption's content words."""
        z = self.mapper.transform(feature[None], self.retrieval["mean"], self.retrieval["std"])[0]
        means = [
            self.mapper.targets[ids].mean(0) if ids else torch.zeros_like(z) for ids in map(self._content_ids, captions)
        ]
        return rank_captions(z, torch.stack(means))[1]

    def _content_ids(self, caption: str) -> list[int]:
        words = (word for word in re.findall(r"\w+", caption.lower()) if word not in STOPWORDS)
        return [token for word in words for token in self._encode(f" {word}")]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _single_token(self, separator: str | None) -> int | None:
        if separator is None:
            return None
        ids = self._encode(separator)
        if len(ids) != 1:
            raise ValueError(
                f"prompt.separator={separator!r} is {len(ids)} tokens in this vocabulary: choose one of one token"
            )
        return ids[0]


def stop_ids(tokenizer: Any, characters: str) -> list[int]:
    """The tokenizer's end token (first, if it has one) and every token whose text contains one of ``characters``."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    stops = {token for token, text in enumerate(texts) if any(character in text for character in characters)}
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return eos + sorted(stops.difference(eos))
