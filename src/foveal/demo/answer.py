"""Questions about a picture, answered by a small language model that is told what the eyes see.

SmolLM2 reads the picture's words after worked examples; in three chat prompts it rambled, or explained what a cat is.
Whether something is there it cannot tell even from a list (on 36 questions, half of them to be affirmed, it said no to
35), so `ZeroShot` decides yes or no, and the language model only goes on from there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from foveal.connect.sitta_captioner import STOPWORDS
from foveal.data.text import words
from foveal.demo.eyes import Eyes
from foveal.demo.zero_shot import ZeroShot
from foveal.llm import LanguageModel

LIKELY = 0.05  # classes at least this probable are told
THERE = 0.2  # `ZeroShot` score from which a thing counts as seen: 69 % of the first nouns of the 35 bundled photos do,
# and 14 % of those of other photos (0.1: 86 and 36 %, 0.3: 49 and 7 %). Asking for the words adds nothing to it.
YES_NO = re.compile(r"\s*(is|are|was|were|do|does|did|can|could|has|have|had|will|would)\b", re.IGNORECASE)
FILLER = STOPWORDS | set(
    words("photo photograph picture image scene see seen show shows shown visible contain contains will somewhere")
)
EXAMPLES = (
    ("dog, ball, grass", "Is there a dog?", "Yes, there is a dog."),
    ("dog, ball, grass", "Is there a car?", "No, I see no car."),
    ("espresso, cup, coffee", "What is this?", "A cup of coffee."),
    ("bread, kitchen, oven", "Is there a cat?", "No, I see no cat."),
    ("lighthouse, sea, beach", "Where is this?", "At the sea, near a lighthouse."),
    ("sports car, road, wheel", "Is it a car?", "Yes, it is a sports car."),
)
PHOTO = "Photo: {}\nQuestion: {}\nAnswer:"


@dataclass(frozen=True)
class Answer:
    """What was said, and on what it rests."""

    text: str
    seen: list[str]
    """What the language model was told: likely classes and SITTA's words."""
    decided: str
    """ "Yes" or "No" when the eyes decided, else ""."""


def answer(
    eyes: Eyes, zero_shot: ZeroShot, language: LanguageModel, image: UInt8[np.ndarray, "_ _ 3"], question: str
) -> Answer:
    """One short answer. ValueError for an empty question."""
    if not question.strip():
        raise ValueError(f"question={question!r} is empty: ask something")
    likely = [name for name, probability in eyes.labels(image) if probability >= LIKELY]
    seen = list(dict.fromkeys([*likely, *eyes.words(image)]))
    decided = decide(zero_shot, image, question)
    shots = "".join(f"{PHOTO.format(*example[:2])} {example[2]}\n\n" for example in EXAMPLES)
    prompt = shots + PHOTO.format(", ".join(seen), " ".join(question.split())) + (f" {decided}," if decided else "")
    said = language.generate([prompt], max_new_tokens=24, stop=["\n"])[0].strip()
    return Answer(f"{decided}, {said}" if decided else said, seen, decided)


def decide(zero_shot: ZeroShot, image: UInt8[np.ndarray, "_ _ 3"], question: str) -> str:
    """ "Yes" or "No" to a question whether something is there, "" to any other."""
    things = [word for word in words(question) if word not in FILLER]
    if not YES_NO.match(question) or not things:
        return ""
    return "Yes" if float(zero_shot.scores(zero_shot.logits([image]), [" ".join(things)])) >= THERE else "No"
