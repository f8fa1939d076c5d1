"""Captions of scenes of three things, wrong captions of the same words, and questions about a thing."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from foveal.data.word_ids import WordIds

NOUNS = ("star", "heart", "square", "dog", "bus", "tree")
COLOURS = ("red", "green", "blue", "yellow")
WORDS = WordIds.of([" ".join(("a is there what colour the yes no", *NOUNS, *COLOURS))])
CLS, MASK, VOCABULARY = len(WORDS), len(WORDS) + 1, len(WORDS) + 2
ANSWERS = (*COLOURS, "yes", "no")
LENGTH = 8
NOUN_PLACES = (2, 4, 6)  # [CLS] red star blue heart green square [end]
Things = list[tuple[str, str]]
"""(colour, noun) of each thing."""


def encode(texts: list[str]) -> Int[Tensor, "n l"]:
    """[CLS] words [end], padded."""
    ids = torch.from_numpy(WORDS.encode(texts, LENGTH - 1))
    return F.pad(ids, (1, 0), value=CLS)


def caption(things: Things) -> str:
    return ", ".join(f"{colour} {noun}" for colour, noun in things)


def wrong_captions(things: Things, rng: np.random.Generator, n: int) -> list[str]:
    """Captions of scenes that there might be: two colours change places, or one colour or one noun is another."""
    found = {caption(things)}
    absent = [noun for noun in NOUNS if noun not in {present for _, present in things}]
    while len(found) <= n:
        colours, nouns = ([thing[k] for thing in things] for k in range(2))
        i, j = rng.choice(3, 2, replace=False)
        match int(rng.integers(3)):
            case 0:
                colours[i], colours[j] = colours[j], colours[i]
            case 1:
                colours[i] = str(rng.choice(COLOURS))
            case _:
                nouns[i] = str(rng.choice(absent))
        found.add(caption(list(zip(colours, nouns))))
    return sorted(found - {caption(things)})


def asked(scenes: list[Things], rng: np.random.Generator) -> tuple[Int[Tensor, "n l"], Int[Tensor, " n"]]:
    """One question about each scene, and its answer in `ANSWERS`."""
    pairs = [question(things, rng) for things in scenes]
    return encode([text for text, _ in pairs]), torch.tensor([ANSWERS.index(answer) for _, answer in pairs])


def question(things: Things, rng: np.random.Generator) -> tuple[str, str]:
    """A question and its answer: the colour of a thing, or whether there is such a one."""
    colour, noun = things[int(rng.integers(3))]
    if rng.random() < 0.5:
        return f"what colour is the {noun}", colour
    asked = colour if rng.random() < 0.5 else str(rng.choice([other for other in COLOURS if other != colour]))
    return f"is there a {asked} {noun}", "yes" if asked == colour else "no"
