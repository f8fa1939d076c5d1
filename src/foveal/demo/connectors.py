"""Two more ways from the same frozen eyes to the same frozen language model, fitted on Twemoji and their names.

`fit_names` solves for SITTA's map in closed form; `train_limber` trains LiMBeR's affine map for a minute. Both read
pooled EfficientNet-Lite0 features, which are computed once. Every family of drawings counts once (its plainest
drawing), so that skin tones and flags do not drown the rest, and nothing here ever sees a held-out emoji.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.connect.limber import Limber, LimberConnector
from foveal.connect.sitta import SittaMapper, class_name_pairs, standardize
from foveal.connect.sitta_captioner import WORKED_EXAMPLES, SittaCaptioner
from foveal.data import twemoji
from foveal.data.text import singular
from foveal.demo.eyes import POOL, STEM, WORDS, Eyes, Progress
from foveal.demo.measure import name_ranks
from foveal.train import FitConfig, fit

METHODS = ("ols", "ridge", "procrustes", "robust_procrustes")
VALIDATION = 0.2  # of the train drawings, to choose the method; the map is then fitted on all of them
BATCH = 16  # pictures between two movements of the progress bar

# LiMBeR: the learning rate was chosen on train drawings left out of a training of 40 steps, never on held-out ones.
# Pooled features, not the 49 positions of the feature map, keep the sequences short. Two examples stand before the
# prompt vectors and "a picture of a" between them and the name: told the very embedding of a word as its first token,
# SmolLM2 repeats that word for 2 of 50 train names; after the examples, for 40 of 50. A name ends with a full stop.
EXAMPLES, PROMPT, END = "dog: a picture of a dog. hat: a picture of a hat.", ": a picture of a", "."
LONGEST_NAME = 3  # tokens; longer names ("person in motorized wheelchair") are left out of the training
PROMPT_VECTORS, STEPS, BATCH_SIZE, LEARNING_RATE = 2, 20, 16, 7e-5


@dataclass(frozen=True)
class Drawings:
    """Emoji of one part of the split, one of each family, with their pooled features."""

    emojis: tuple[twemoji.Emoji, ...]
    features: Float[Tensor, "n 1280"]

    @property
    def names(self) -> list[str]:
        return [emoji.name for emoji in self.emojis]


def plainest(part: twemoji.Split) -> list[twemoji.Emoji]:
    """One emoji of each family: that of the fewest code points."""
    families: dict[str, list[twemoji.Emoji]] = {}
    for emoji in twemoji.emojis():
        if twemoji.split(emoji) == part:
            families.setdefault(emoji.base, []).append(emoji)
    return [min(family, key=lambda emoji: (emoji.key.count("-"), emoji.key)) for family in families.values()]


def look_at(eyes: Eyes, emojis: Sequence[twemoji.Emoji], progress: Progress) -> Drawings:
    """The emoji with what the eyes see in each."""
    features = []
    for start in range(0, len(emojis), BATCH):
        progress("looking at emoji", start, len(emojis))
        features.append(eyes.vision.features([twemoji.picture(emoji) for emoji in emojis[start : start + BATCH]]))
    progress("looking at emoji", len(emojis), len(emojis))
    return Drawings(tuple(emojis), torch.cat(features))


def name_tokens(eyes: Eyes, names: Sequence[str]) -> list[list[int]]:
    """The distinct token ids of each name's content words; a name without letters has none."""
    return class_name_pairs(names, lambda text: eyes.language.tokenizer(text, add_special_tokens=False)["input_ids"])


def name_embeddings(eyes: Eyes, names: Sequence[str]) -> Float[Tensor, "n dl"]:
    """Mean standardised token embedding of each name, in the space that SITTA maps to; zeros without a token."""
    targets = eyes.mapper.targets
    means = [targets[ids].mean(0) if ids else torch.zeros(targets.shape[1]) for ids in name_tokens(eyes, names)]
    return torch.stack(means)


def fit_names(
    eyes: Eyes, train: Drawings, rng: np.random.Generator, progress: Progress
) -> tuple[SittaMapper, dict[str, float]]:
    """SITTA's map from drawings to the tokens of their names, and each method's mean reciprocal rank.

    The method is the one that ranks the names of a random fifth of the train drawings best when fitted on the rest.
    """
    tokens = name_tokens(eyes, train.names)
    usable = [index for index, ids in enumerate(tokens) if ids]
    order = rng.permutation(usable)
    validation, rest = np.split(order, [max(2, int(VALIDATION * len(order)))])

    def fitted(method: str, chosen: Sequence[int] | np.ndarray) -> SittaMapper:
        return SittaMapper(method).fit(train.features[chosen], [tokens[index] for index in chosen], eyes.embeddings)

    names = name_embeddings(eyes, [train.names[index] for index in validation])
    scores = {}
    for done, method in enumerate(METHODS):
        progress("fitting SITTA on emoji names", done, len(METHODS) + 1)
        ranks = name_ranks(fitted(method, rest).transform(train.features[validation]), names)
        scores[method] = float((1 / ranks).mean())
    progress("fitting SITTA on emoji names", len(METHODS), len(METHODS) + 1)
    best = fitted(max(scores, key=lambda method: scores[method]), usable)
    progress("fitting SITTA on emoji names", len(METHODS) + 1, len(METHODS) + 1)
    return best, scores


def sitta_captioner(eyes: Eyes, mapper: SittaMapper, orders: int) -> SittaCaptioner:
    """The eyes' own prompt and words behind another map; fewer orders than theirs, for time."""
    tokenizer: Any = eyes.language.tokenizer
    return SittaCaptioner(
        mapper,
        eyes.language.model,
        tokenizer,
        k=WORDS,
        n_orders=orders,
        prompt=WORKED_EXAMPLES,
        decode=lambda token: singular(tokenizer.decode(token).strip())[:STEM],
        pool=POOL,
        allowed=eyes.whole,
    )


class AfterExamples(nn.Module):
    """A connector whose prompt vectors come after the embeddings of a fixed text."""

    examples: Tensor

    def __init__(self, connector: LimberConnector, examples: Float[Tensor, "l dl"]) -> None:
        super().__init__()
        self.connector, self.seq_len = connector, connector.seq_len
        self.register_buffer("examples", examples)

    def forward(self, features: Float[Tensor, "b dv"]) -> Float[Tensor, "b l_plus_s dl"]:
        return torch.cat([self.examples.expand(len(features), -1, -1), self.connector(features)], 1)


class LimberCaptioner:
    """A trained LiMBeR with the standardisation of its features; both together are still one affine map."""

    def __init__(self, limber: Limber, tokenizer: Any, mean: Tensor, std: Tensor) -> None:
        self.limber, self.tokenizer, self.mean, self.std = limber, tokenizer, mean, std
        self.prompt = torch.tensor(tokenizer(PROMPT, add_special_tokens=False)["input_ids"])

    def captions(self, features: Float[Tensor, "n 1280"], max_new_tokens: int = 6) -> list[str]:
        """What greedily follows the prompt, for all pictures in one batch."""
        z = standardize(features, self.mean, self.std)[0]
        texts = self.tokenizer.batch_decode(self.limber.generate(z, self.prompt, max_new_tokens))
        return [" ".join(text.split(END)[0].split()) for text in texts]


def caption_ids(tokenizer: Any, names: Sequence[str]) -> tuple[list[int], Int[Tensor, "m l"], int]:
    """Indices of the names of at most `LONGEST_NAME` tokens, the ids of their captions, and that of the end token.

    A caption is `PROMPT`, the name, and `END`, with which it is also padded.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt, (end, *_) = encode(PROMPT), encode(END)
    encoded = [encode(f" {name.lower()}") for name in names]
    kept = [index for index, ids in enumerate(encoded) if len(ids) <= LONGEST_NAME]
    rows = [prompt + encoded[index] + [end] * (LONGEST_NAME + 1 - len(encoded[index])) for index in kept]
    return kept, torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1), end


def train_limber(
    eyes: Eyes, train: Drawings, start: SittaMapper, progress: Progress, steps: int = STEPS, seed: int = 0
) -> LimberCaptioner:
    """LiMBeR's map, trained to make the frozen language model say the name of a drawing.

    It starts at SITTA's map ``start``, at the scale of word embeddings, and not at random as in the paper.
    """
    language, tokenizer = eyes.language.model, eyes.language.tokenizer
    features, mean, std = standardize(train.features, start.source_mean, start.source_std)
    kept, ids, end = caption_ids(tokenizer, train.names)
    connector = LimberConnector(features.shape[1], language.config.hidden_size, seq_len=PROMPT_VECTORS)
    with torch.no_grad():
        to_words = start.W * (start.target_std / (features @ start.W).std())
        connector.proj.weight.copy_(to_words.mT.repeat(PROMPT_VECTORS, 1))
        connector.proj.bias.copy_(start.target_mean.repeat(PROMPT_VECTORS))
    examples = torch.tensor(tokenizer(EXAMPLES, add_special_tokens=False)["input_ids"])
    limber = Limber(AfterExamples(connector, eyes.embeddings[examples]), language, end)
    done = iter(range(1, steps + 1))
    config = FitConfig(
        lr=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        seed=seed,
        progress=False,  # the demo's own bar shows the steps
        after_step=lambda _: progress("training LiMBeR", next(done), steps),
    )
    progress("training LiMBeR", 0, steps)
    fit(limber, TensorDataset(features[kept], ids), steps=steps, config=config)
    return LimberCaptioner(limber, tokenizer, mean, std)
