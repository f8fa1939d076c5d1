"""The demo from beginning to end, without any printing: real parts in, `Findings` out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.connect.sitta import soft_prototype, standardize
from foveal.data import twemoji
from foveal.data.images import read_image
from foveal.data.photos import photos
from foveal.demo.connectors import (
    STEPS,
    Drawings,
    fit_names,
    look_at,
    name_embeddings,
    plainest,
    sitta_captioner,
    train_limber,
)
from foveal.demo.decoders import Decoders, compare_decoders
from foveal.demo.eyes import TEMPERATURE, Eyes, Image, Progress
from foveal.demo.fewer_tokens import FewerTokens, compare_budgets
from foveal.demo.host import Host
from foveal.demo.matcher import PatchMatcher
from foveal.demo.measure import Naming, Retrieval, naming, retrieval
from foveal.demo.scenes import views
from foveal.lab.environment import hardware, versions
from foveal.train.meters import high_water_mark

NAMES = 200  # candidates of the retrieval
SHOWN, SHOWN_EMOJI = 6, 3  # sample photographs and held-out emoji
CLASSES, PAIRS, LIMBER = "SITTA, class names", "SITTA, emoji names", "LiMBeR"
CONNECTORS = (CLASSES, PAIRS, LIMBER)


@dataclass(frozen=True)
class Size:
    """How much of everything: the full demo, or a smoke test of it."""

    train: int | None = None
    held_out: int | None = None
    names: int = NAMES
    steps: int = STEPS
    shown: int = SHOWN
    emoji: int = SHOWN_EMOJI
    orders: int = 2
    scenes: int = 3
    """Drawn ones, shown."""
    quiz: int = 24
    """Questions of each kind with fewer visual tokens."""
    descriptions: int = 9
    """By each decoder, beside those of the scenes shown."""


SMOKE = Size(96, 12, names=20, steps=2, shown=1, emoji=1, orders=1, scenes=1, quiz=1, descriptions=1)


@dataclass(frozen=True)
class Said:
    """What one connector made of a picture; LiMBeR's prompt vector is no word."""

    connector: str
    caption: str
    words: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Card:
    """One picture and everything said about it."""

    title: str
    source: str
    image: Image
    said: tuple[Said, ...]
    labels: tuple[tuple[str, float], ...]
    """Zero-shot: the three best of ``label_count`` labels with their cosines to the picture."""
    label_count: int


@dataclass
class Findings:
    """All that the report shows."""

    photos: list[Card] = field(default_factory=list)
    emoji: list[Card] = field(default_factory=list)
    retrieval: dict[str, Retrieval] = field(default_factory=dict)
    naming: dict[str, Naming] = field(default_factory=dict)
    fewer: FewerTokens | None = None
    decoders: Decoders | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    method: str = ""
    method_scores: dict[str, float] = field(default_factory=dict)
    train_families: int = 0
    steps: int = 0
    smoke: bool = False
    peak_memory_bytes: int = 0
    hardware: dict[str, Any] = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Seconds of a stage, by its name."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Picture:
    """What a card is made of."""

    title: str
    source: str
    image: Image


def own_pictures(paths: Sequence[str | os.PathLike[str]]) -> list[Picture]:
    """The user's files. Raises ImageError (a ValueError of one line) for the first that cannot be read."""
    return [Picture(Path(path).name, "your picture", read_image(path)) for path in paths]


def sample_pictures(count: int) -> list[Picture]:
    """The first sample photographs."""
    samples = photos()
    chosen = [samples[index] for index in range(min(count, len(samples)))]
    return [Picture(s.meta["note"], f"{s.meta['source']}, {s.meta['licence']}", s.images[0]) for s in chosen]


def run(own: Sequence[Picture], size: Size, seed: int, progress: Progress) -> Findings:
    """Load, join, measure, describe. ``own`` takes the place of the sample photographs when there is any."""
    found = Findings(steps=size.steps, smoke=size != Size())
    rng = np.random.default_rng(seed)
    with found.timed("load the pretrained parts"):
        eyes = Eyes.load(lambda what, done, total: progress("loading pretrained parts", done, total))
    with found.timed("look at the emoji"):
        train_emoji, test_emoji = (_some(plainest(part), n) for part, n in _parts(size))
        seen = look_at(eyes, train_emoji + test_emoji, progress)
        train = Drawings(seen.emojis[: len(train_emoji)], seen.features[: len(train_emoji)])
        test = Drawings(seen.emojis[len(train_emoji) :], seen.features[len(train_emoji) :])
        found.train_families = len(train_emoji)
    voices = _Voices(eyes, size)
    with found.timed("fit SITTA on emoji names"):
        voices.pairs, found.method_scores = fit_names(eyes, train, rng, progress)
        found.method = voices.pairs.method
    with found.timed("train LiMBeR"):
        voices.limber = train_limber(eyes, train, voices.pairs, progress, size.steps, seed)
    with found.timed("measure on held-out emoji"):
        _measure(found, voices, train, test, size, rng, progress)
    with found.timed("describe the pictures"):
        _describe(found, voices, own, test, size, progress)
    _ask_nano_llava(found, size, seed, progress)
    found.peak_memory_bytes = high_water_mark()
    return found


def _ask_nano_llava(found: Findings, size: Size, seed: int, progress: Progress) -> None:
    """The same questions with fewer visual tokens, and with decoders that look twice."""
    host, shown = Host.load(), views(seed, size.scenes)
    with found.timed("fewer visual tokens"):
        found.fewer = compare_budgets(host, shown, seed, size.quiz, progress)
    with found.timed("decoders"):
        found.decoders = compare_decoders(host, PatchMatcher.load(), shown, seed, size.descriptions, progress)


def _parts(size: Size) -> tuple[tuple[twemoji.Split, int | None], ...]:
    return ("train", size.train), ("held_out", size.held_out)


def _some(things: list, count: int | None) -> list:
    """Evenly spread ones: neighbours in Unicode look alike."""
    if count is None or count >= len(things):
        return things
    return [things[index * len(things) // count] for index in range(count)]


class _Voices:
    """The three connectors over one look at each picture."""

    pairs: Any
    limber: Any

    def __init__(self, eyes: Eyes, size: Size) -> None:
        self.eyes, self.size = eyes, size

    def prototype(self, features: Float[Tensor, "n 1280"]) -> Float[Tensor, "n 1280"]:
        """What the class-name map reads, as `Eyes.feature` makes it from pictures."""
        vision = self.eyes.vision
        return soft_prototype(features, vision.classifier_weight, vision.classifier_bias, temperature=TEMPERATURE)

    def captioners(self) -> dict[str, tuple[Any, Any]]:
        """Each SITTA captioner and the function from pooled features to what it reads."""
        return {
            CLASSES: (sitta_captioner(self.eyes, self.eyes.mapper, self.size.orders), self.prototype),
            PAIRS: (sitta_captioner(self.eyes, self.pairs, self.size.orders), lambda features: features),
        }


def _measure(
    found: Findings,
    voices: _Voices,
    train: Drawings,
    test: Drawings,
    size: Size,
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    """Fill in retrieval and naming, on held-out emoji only."""
    fillers = rng.choice(len(train.emojis), size.names - len(test.emojis), replace=False)
    names = name_embeddings(voices.eyes, test.names + [train.names[index] for index in fillers])
    # The class rows are no pictures: their map gets the statistics of pictures, those of the train emoji.
    prototypes, (_, mean, std) = voices.prototype(test.features), standardize(voices.prototype(train.features))
    mapped = {
        CLASSES: voices.eyes.mapper.transform(prototypes, mean, std),
        PAIRS: voices.pairs.transform(test.features),
    }
    found.retrieval = {name: retrieval(z, names, rng) for name, z in mapped.items()}
    nouns = [twemoji.head_noun(name) for name in test.names]
    said = {
        name: [" ".join(captioner.words(feature)) for feature in read(test.features)]
        for name, (captioner, read) in voices.captioners().items()
    }
    said[LIMBER] = []
    for start in range(0, len(nouns), 20):
        progress("measuring LiMBeR on held-out emoji", start, len(nouns))
        said[LIMBER] += voices.limber.captions(test.features[start : start + 20])
    progress("measuring LiMBeR on held-out emoji", len(nouns), len(nouns))
    found.naming = {name: naming(texts, nouns, rng) for name, texts in said.items()}


def _describe(
    found: Findings, voices: _Voices, own: Sequence[Picture], test: Drawings, size: Size, progress: Progress
) -> None:
    """A card for each picture. The emoji are taken at even distances, not for what was said of them."""
    chosen = _some(list(test.emojis), size.emoji)
    real = list(own) or sample_pictures(size.shown)
    drawn = [Picture(emoji.name, f"Twemoji {emoji.key}", twemoji.picture(emoji, 144)) for emoji in chosen]
    things = list(dict.fromkeys(sample.meta["nouns"][0] for sample in photos()))
    label_sets = [
        (things, name_embeddings(voices.eyes, things)),
        (test.names, name_embeddings(voices.eyes, test.names)),
    ]
    captioners = voices.captioners()
    for index, picture in enumerate(real + drawn):
        progress("describing pictures", index, len(real) + len(drawn))
        is_drawn = index >= len(real)
        card = _card(voices, captioners, picture, *label_sets[is_drawn])
        (found.emoji if is_drawn else found.photos).append(card)
    progress("describing pictures", len(real) + len(drawn), len(real) + len(drawn))


def _card(
    voices: _Voices,
    captioners: dict[str, tuple[Any, Any]],
    picture: Picture,
    labels: list[str],
    embeddings: Float[Tensor, "m dl"],
) -> Card:
    started = time.perf_counter()
    features = voices.eyes.vision.features([picture.image])
    looking = time.perf_counter() - started
    said = []
    for name, (captioner, read) in captioners.items():
        started = time.perf_counter()
        feature = read(features)[0]
        caption = captioner.caption(feature)[0]
        words = tuple(captioner.words(feature))
        said.append(Said(name, caption, words, looking + time.perf_counter() - started))
    started = time.perf_counter()
    caption = voices.limber.captions(features)[0]
    said.append(Said(LIMBER, caption, (), looking + time.perf_counter() - started))
    z = voices.eyes.mapper.transform(voices.prototype(features))
    cosine = F.normalize(z, dim=1)[0] @ F.normalize(embeddings, dim=1).mT
    best = torch.topk(cosine, min(3, len(labels)))
    zero_shot = tuple((labels[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Card(picture.title, picture.source, picture.image, tuple(said), zero_shot, len(labels))
