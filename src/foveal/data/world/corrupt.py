"""Flaws on purpose: noisy captions and labels, long tails, duplicates; each says exactly what it spoilt.

Curation and robust training can then be judged against the truth. Everything is a pure function of its arguments and
``seed``; the inputs are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from foveal.data.world.absent import Negatives
from foveal.data.world.captions import SPOKEN_GROUPS, region_caption, short_caption
from foveal.data.world.config import WorldConfig
from foveal.data.world.phrases import ALIKE, article, pick
from foveal.data.world.scene import Scene, Thing
from foveal.data.world.views import jitter
from foveal.data.world.vocabulary import CATEGORY, COLOURS, NOUNS, PLURALS, SIZES, TEXTURES

BOILERPLATE = (
    "click to see more",
    "photo for sale",
    "image not available",
    "our products at the best price",
    "share this page with your friends",
    "untitled document",
)
"""What is written beside pictures on the web and says nothing about them."""


@dataclass(frozen=True, slots=True)
class Noisy:
    """Captions after the damage, and which of them were changed; the others are untouched."""

    captions: list[str]
    changed: Bool[np.ndarray, " n"]


def swap_captions(captions: Sequence[str], rate: float, seed: int) -> Noisy:
    """Give ``round(rate · n)`` captions to other samples of that group: none of them keeps its own.

    A caption may meet another sample that it happens to fit word for word; such a sample counts as unchanged.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(len(captions), rate, rng)
    spoilt = list(captions)
    turn = rng.permutation(chosen)
    for here, there in zip(turn, np.roll(turn, 1)):  # a single cycle, so nobody keeps its own
        spoilt[here] = captions[there]
    return _noisy(captions, spoilt)


def boilerplate(captions: Sequence[str], rate: float, seed: int) -> Noisy:
    """Replace ``round(rate · n)`` captions by one of `BOILERPLATE`."""
    rng = np.random.default_rng(seed)
    spoilt = list(captions)
    for i in _chosen(len(captions), rate, rng):
        spoilt[i] = pick(rng, BOILERPLATE)
    return _noisy(captions, spoilt)


def replace_words(captions: Sequence[str], rate: float, seed: int) -> Noisy:
    """Make ``round(rate · n)`` captions wrong in one word: a noun, colour, size or texture becomes another one.

    Captions without such a word stay as they are. Nouns are replaced within their category where that is possible.
    """
    rng = np.random.default_rng(seed)
    spoilt = list(captions)
    for i in _chosen(len(captions), rate, rng):
        spoilt[i] = _with_wrong_word(captions[i], rng)
    return _noisy(captions, spoilt)


def truncate_captions(captions: Sequence[str], scenes: Sequence[Scene], rate: float, seed: int) -> Noisy:
    """Reduce ``round(rate · n)`` captions to a phrase about one thing of their scene: true, but incomplete."""
    _paired(captions, scenes)
    rng = np.random.default_rng(seed)
    spoilt = list(captions)
    for i in _chosen(len(captions), rate, rng):
        if scenes[i].things:
            spoilt[i] = region_caption(scenes[i], int(rng.random() * len(scenes[i].things)), rng)
    return _noisy(captions, spoilt)


def mention_absent(
    captions: Sequence[str], scenes: Sequence[Scene], rate: float, seed: int, config: WorldConfig | None = None
) -> Noisy:
    """With probability ``rate`` each, a caption that also names a thing which is absent but usual beside what is there.

    Such a caption is written anew, so that nothing but the picture gives it away. Scenes without habitual companions
    stay as they are. This is how models learn to invent things. ``config``: of the scenes, whose nouns are used.
    """
    _paired(captions, scenes)
    _check_share("rate", rate)
    rng = np.random.default_rng(seed)
    spoilt, negatives = list(captions), Negatives(config=config or WorldConfig())
    for i in np.flatnonzero(rng.random(len(captions)) < rate).tolist():
        if missing := negatives.companions(scenes[i]):
            spoilt[i] = short_caption(_haunted(scenes[i], pick(rng, missing), rng), rng)
    return _noisy(captions, spoilt)


def flip_labels(
    labels: Int[np.ndarray, " n"], classes: int, rate: float, seed: int
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Symmetric noise: ``round(rate · n)`` labels become another class, all others equally likely.

    Returns:
        The labels and which were flipped. ValueError: fewer than two classes, or a label out of range.
    """
    labels = np.asarray(labels)
    if classes < 2:
        raise ValueError(f"classes={classes}: a label can only flip between at least 2")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels hold {labels.min()}..{labels.max()}, which does not fit classes={classes}")
    rng = np.random.default_rng(seed)
    chosen = _chosen(len(labels), rate, rng)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return noisy, noisy != labels


def long_tail(labels: Int[np.ndarray, " n"], imbalance: float, seed: int) -> Int[np.ndarray, " m"]:
    """Sorted indices of a long-tailed subset whose class sizes fall geometrically.

    The most frequent class is as large as the smallest class of ``labels`` and ``imbalance`` times as large as the
    rarest one, which keeps at least one sample. Which class is how frequent is drawn from ``seed``.

    Raises:
        ValueError: imbalance below 1, or no labels.
    """
    labels = np.asarray(labels)
    if imbalance < 1:
        raise ValueError(f"imbalance={imbalance}: the largest class is at least as large as the smallest, so ≥ 1")
    if not len(labels):
        raise ValueError("labels is empty")
    rng = np.random.default_rng(seed)
    names, counts = np.unique(labels, return_counts=True)
    shares = imbalance ** -(np.arange(len(names)) / max(len(names) - 1, 1))
    sizes = np.maximum(1, np.round(counts.min() * shares)).astype(int)
    kept = [rng.permutation(np.flatnonzero(labels == name))[:size] for name, size in zip(rng.permutation(names), sizes)]
    return np.sort(np.concatenate(kept))


def duplicates(n: int, share: float, seed: int) -> Int[np.ndarray, " n"]:
    """For each of n places the sample to put there: ``round(share · n)`` places repeat a sample of another place.

    The originals stay in their own places, so ``result[i] != i`` tells the copies.
    """
    _check_share("share", share)
    rng = np.random.default_rng(seed)
    copies = _chosen(n, share, rng)
    if len(copies) == n and n:
        raise ValueError(f"share={share} leaves no original among n={n}: choose a smaller one")
    source = np.arange(n)
    originals = np.setdiff1d(source, copies)
    source[copies] = rng.choice(originals, len(copies))
    return source


def near_duplicates(
    scenes: Sequence[Scene], share: float, seed: int, amount: float = 0.02
) -> tuple[list[Scene], Int[np.ndarray, " n"]]:
    """`duplicates` whose copies differ a little: things move by up to ``amount`` of the picture, 0 to 0.2.

    Returns:
        The scenes and, for each, the place of the scene that it was made from.
    """
    source = duplicates(len(scenes), share, seed)
    rng = np.random.default_rng((seed, 1))
    made = [scenes[j] if i == j else jitter(scenes[j], rng, amount) for i, j in enumerate(source.tolist())]
    return made, source


def _word_swaps() -> dict[str, tuple[str, ...]]:
    """Every word that can be made wrong, with the words that make it so."""
    swaps: dict[str, tuple[str, ...]] = {}
    for words in (tuple(COLOURS), SIZES, TEXTURES[1:]):
        swaps |= {word: tuple(other for other in words if other != word) for word in words}
    for noun in NOUNS:
        if PLURALS[noun] == noun:  # "two fish" must not become "two dog"
            continue
        others = [other for other in NOUNS if other not in ALIKE[noun] | {noun} and PLURALS[other] != other]
        others = [other for other in others if CATEGORY[other] == CATEGORY[noun]] or others
        swaps |= {noun: tuple(others), PLURALS[noun]: tuple(PLURALS[other] for other in others)}
    return swaps


_SWAPS = _word_swaps()
_WORD = re.compile(rf"\b(?:(an?) )?({'|'.join(sorted(_SWAPS, key=len, reverse=True))})\b")


def _with_wrong_word(caption: str, rng: np.random.Generator) -> str:
    found = list(_WORD.finditer(caption))
    if not found:
        return caption
    match = pick(rng, found)
    word = pick(rng, _SWAPS[match[2]])
    return f"{caption[: match.start()]}{f'{article(word)} ' if match[1] else ''}{word}{caption[match.end() :]}"


def _haunted(scene: Scene, noun: str, rng: np.random.Generator) -> Scene:
    """With one more thing, early enough in the order to be named by a short caption."""
    phantom = Thing(noun, CATEGORY[noun], "medium", x=0.5, y=0.5, radius=0.1, depth=5.0)
    place = int(rng.random() * min(len(scene.things) + 1, SPOKEN_GROUPS))
    return scene.with_(things=(*scene.things[:place], phantom, *scene.things[place:]))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must lie in [0, 1]")


def _chosen(n: int, rate: float, rng: np.random.Generator) -> list[int]:
    _check_share("rate", rate)
    return rng.permutation(n)[: round(rate * n)].tolist()


def _noisy(before: Sequence[str], after: list[str]) -> Noisy:
    return Noisy(after, np.array([a != b for a, b in zip(before, after)], dtype=bool))


def _paired(captions: Sequence[str], scenes: Sequence[Scene]) -> None:
    if len(captions) != len(scenes):
        raise ValueError(f"{len(captions)} captions and {len(scenes)} scenes: need one scene for every caption")
