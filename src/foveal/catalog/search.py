"""Find papers by a need in the user's words: meaning (MiniLM) plus shared words.

The embeddings of the catalogue ship beside it, so that a search encodes the query only. After an edit of
``papers.toml`` run ``python -m foveal.catalog.search``; a test compares the file with a fresh computation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from foveal.catalog.loader import Paper, papers

if TYPE_CHECKING:
    from foveal.zoo.minilm import MiniLM

EMBEDDINGS = Path(__file__).with_name("embeddings.npy")
WORD_WEIGHT = 0.3
"""Weight of shared words beside the cosine; chosen once on the "dev" half of tests/catalog/needs.toml."""
_STOP = """a an and any are as at be by can do each every for from had has have how i in into is it its many me more
most much my no not of on only or our so than that the their them then there they this to want was we what when where
which who will with without would you your"""
STOP_WORDS = frozenset(_STOP.split())
ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ed", "es", "s")


def find(query: str, k: int = 5) -> list[tuple[Paper, float]]:
    """The `k` papers that answer a need best, with their scores, best first.

    The score is the mean cosine of the query with the title, the summary and the keywords, plus `WORD_WEIGHT` times
    the share of the query's words (weighted by rarity) that the entry holds: from about 0 to 1.3.
    ValueError for an empty query or ``k < 1``.
    """
    if not query.strip():
        raise ValueError(f"query={query!r} is empty; say what you need, e.g. 'fewer visual tokens without training'")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    scores = _table() @ _encode([query])[0] + WORD_WEIGHT * word_overlap(query)
    best = np.argsort(-scores, kind="stable")[:k]
    return [(papers()[i], float(scores[i])) for i in best]


def embeddings() -> Float[np.ndarray, "papers 384"]:
    """Mean of the unit vectors of title, summary and keywords of every paper, computed afresh with MiniLM.

    The mean of several cosines with a query is its dot product with this one row.
    """
    entries = papers()
    titles, summaries = [entry.title for entry in entries], [entry.summary for entry in entries]
    keywords = [", ".join(entry.keywords) for entry in entries]
    return np.mean([_encode(texts) for texts in (titles, summaries, keywords)], axis=0)


def word_overlap(query: str) -> Float[np.ndarray, " papers"]:
    """Share of the query's words, weighted by rarity in the catalogue, that each entry holds: 0 to 1."""
    held, rarity = _words()
    asked = set(stems(query))
    total = sum(rarity(word) for word in asked)
    if not total:
        return np.zeros(len(held))
    return np.array([sum(rarity(word) for word in asked & words) / total for words in held])


def stems(text: str) -> list[str]:
    """Lower-case words without stop words and common endings: 'pruned tokens' and 'token pruning' meet."""
    return [_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word


@cache
def _words() -> tuple[list[frozenset[str]], Callable[[str], float]]:
    entries = papers()
    held = [frozenset(stems(" ".join((entry.title, entry.summary, *entry.keywords)))) for entry in entries]
    count = Counter(word for words in held for word in words)

    def rarity(word: str) -> float:
        return math.log(1 + (len(held) - count[word] + 0.5) / (count[word] + 0.5))  # BM25's inverse document frequency

    return held, rarity


@cache
def _table() -> Float[np.ndarray, "papers 384"]:
    table = np.load(EMBEDDINGS, allow_pickle=False).astype(np.float32)
    if len(table) != len(papers()):
        raise ValueError(
            f"{EMBEDDINGS} has {len(table)} rows for {len(papers())} papers; run python -m foveal.catalog.search"
        )
    return table


@cache
def _encoder() -> MiniLM:
    from foveal import zoo

    return zoo.load("minilm")


def _encode(texts: Sequence[str]) -> Float[np.ndarray, "n 384"]:
    return _encoder().encode(list(texts)).numpy()


if __name__ == "__main__":
    np.save(EMBEDDINGS, embeddings().astype(np.float16), allow_pickle=False)
