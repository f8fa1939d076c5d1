"""What nano-llava is taught to say of a picture: short exchanges, each true by the scene's own description.

An exchange is one prompt with its answer. Prompts vary in wording, say "picture" or "image", and sometimes carry the
suffixes by which LLaVA-1.5 asks for short answers (Liu et al., arXiv 2310.03744); answers are always short where a
question can be answered in a word, with or without the suffix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int

from foveal.data.box_text import format_box
from foveal.data.world.absent import CHOICES, Negatives
from foveal.data.world.captions import long_caption, region_caption, short_caption
from foveal.data.world.config import WorldConfig
from foveal.data.world.narrate import clip_caption, clip_questions, story
from foveal.data.world.phrases import NUMBERS, article, listed, pick
from foveal.data.world.questions import KINDS, questions
from foveal.data.world.referring import referring_expression
from foveal.data.world.scene import Clip, Scene
from foveal.data.world.vocabulary import PLURALS

PROMPTS = MappingProxyType(
    {
        "short": (
            "Describe the picture briefly.",
            "Give a short caption.",
            "Write a caption for the picture.",
            "Describe the picture in one sentence.",
            "What does the picture show?",
        ),
        "long": (
            "Describe the picture in detail.",
            "Please describe this picture in detail.",
            "Describe the picture.",
            "Give a detailed description of the picture.",
            "What do you see? Describe everything.",
        ),
        "objects": (
            "Which things are in the picture?",
            "List the objects in the picture.",
            "What objects can you see?",
        ),
        "region": (
            "What is at {0}?",
            "Describe the region {0}.",
            "What can be seen in the box {0}?",
            "Provide a short description for this region: {0}",
        ),
        "grounding": (
            "Give the box of {0}.",
            "Where is {0}? Answer with a box.",
            "Locate {0}.",
            "Provide the bounding box of {0}.",
        ),
        "event": ("What happens?", "Describe briefly what happens.", "What happens in these pictures?"),
        "story": ("Tell what happens in detail.", "Describe the pictures in detail.", "Tell the whole story."),
    }
)
"""Task -> its prompts; the blank takes a box or a phrase such as "the red star"."""

CAPTIONS: Mapping[str, int] = MappingProxyType({"short": 2, "long": 1, "objects": 1, "region": 1})
"""What the first stage teaches: task -> how many exchanges of it a round has at most."""
EVERYTHING: Mapping[str, int] = MappingProxyType(
    {
        "short": 1,
        "long": 1,
        "objects": 1,
        "region": 2,
        "grounding": 3,
        **{kind: 2 if kind in ("existence", "count", "colour", "relation", "comparison") else 1 for kind in KINDS},
    }
)
"""What the second stage teaches."""
QUESTIONS: Mapping[str, int] = MappingProxyType(
    {**EVERYTHING, "existence": 4, "count": 3, "colour": 3, "relation": 3, "grounding": 3, "object": 2}
)
"""What the third stage teaches: everything, and more of what can be told right from wrong."""
PRACTICE: Mapping[str, int] = MappingProxyType(
    {
        **{task: most for task, most in QUESTIONS.items() if task not in ("short", "region", "place", "ocr")},
        "existence": 6,
        "relation": 5,
        "grounding": 4,
    }
)
"""What the fourth stage teaches: more of what the third left weak, nothing of what it left perfect or hopeless."""
REVISION: Mapping[str, int] = MappingProxyType({**QUESTIONS, "colour": 5, "relation": 6, "grounding": 5})
"""What the last stage teaches: everything again, and most of all where things are and what colour they have."""
TASKS = MappingProxyType(
    {
        "captions": CAPTIONS,
        "everything": EVERYTHING,
        "questions": QUESTIONS,
        "practice": PRACTICE,
        "revision": REVISION,
    }
)

ONE_WORD = ("Answer with one word.", "Answer the question using a single word or phrase.")
YES_NO = (*ONE_WORD, "Answer yes or no.")
SUFFIXED, REWORDED = 0.2, 0.4
"""Shares of the questions with a suffix, and of the prompts that say "image" for "picture"."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """``task`` is a key of `PROMPTS` or a kind of question."""

    prompt: str
    answer: str
    task: str


def exchanges(
    scene: Scene,
    boxes: Int[np.ndarray, "k 4"],
    config: WorldConfig,
    rng: np.random.Generator,
    tasks: Mapping[str, int] = EVERYTHING,
) -> list[Exchange]:
    """One round: at most ``tasks[name]`` exchanges of every task that the scene allows, in random order.

    Args:
        scene: what the picture shows.
        boxes: in pixels, of what can be seen of its things; all zeros for a thing without a box.
        config: of the scene's world; existence questions are about its nouns, drawn in the three ways of POPE.
        rng: chooses wordings, things and order.
        tasks: of `PROMPTS` (those for one picture) and `KINDS`.
    """
    negatives = Negatives(pick(rng, CHOICES), config)
    found: list[Exchange] = []
    for task, most in tasks.items():
        if task in KINDS:
            asked = questions(scene, rng, (task,), most, negatives)
            found += [Exchange(_suffixed(q.text, q.answers[0], rng), q.answers[0], task) for q in asked]
        else:
            found += _told(scene, boxes, config, rng, task, most)
    return _varied(found, rng)


def clip_exchanges(clip: Clip, rng: np.random.Generator) -> list[Exchange]:
    """Everything asked and told of a clip, its frames being the pictures of the prompt, in random order."""
    found = [
        Exchange(pick(rng, PROMPTS["event"]), clip_caption(clip, rng), "event"),
        Exchange(pick(rng, PROMPTS["story"]), " ".join(part.text for part in story(clip, rng)), "story"),
    ]
    for question in clip_questions(clip, rng):
        prompt = _suffixed(question.text, question.answers[0], rng)
        found.append(Exchange(prompt, question.answers[0], question.kind))
    return _varied(found, rng)


def _told(
    scene: Scene,
    boxes: Int[np.ndarray, "k 4"],
    config: WorldConfig,
    rng: np.random.Generator,
    task: str,
    most: int,
) -> list[Exchange]:
    """Captions, lists of things, regions and boxes."""
    if task == "short":
        return [Exchange(pick(rng, PROMPTS[task]), short_caption(scene, rng), task) for _ in range(most)]
    if task == "long":
        told = [" ".join(part.text for part in long_caption(scene, rng)) for _ in range(most)]
        return [Exchange(pick(rng, PROMPTS[task]), text, task) for text in told]
    if task == "objects":
        return [Exchange(pick(rng, PROMPTS[task]), _objects(scene), task)][:most]
    if task not in ("region", "grounding"):
        raise ValueError(f"task={task!r}: choose one of {', '.join(EVERYTHING)}")
    height, width = config.shape
    found = []
    for i in rng.permutation(len(scene.things)).tolist():
        if not boxes[i].any():
            continue
        box = format_box(boxes[i].tolist(), width, height)
        if task == "region":
            found.append(Exchange(pick(rng, PROMPTS[task]).format(box), region_caption(scene, i, rng), task))
        elif phrase := referring_expression(scene, i):
            found.append(Exchange(pick(rng, PROMPTS[task]).format(phrase), box, task))
    return found[:most]


def _objects(scene: Scene) -> str:
    """ "two dogs and a star": all nouns with their numbers, the nearest things first."""
    counts = Counter(thing.noun for thing in scene.things)
    parts = [
        f"{NUMBERS[count]} {PLURALS[noun]}" if count > 1 else f"{article(noun)} {noun}"
        for noun, count in counts.items()
    ]
    return listed(parts) if parts else "nothing"


def _suffixed(prompt: str, answer: str, rng: np.random.Generator) -> str:
    """The question, sometimes with a suffix that its answer obeys."""
    if " " in answer or rng.random() >= SUFFIXED:
        return prompt
    return f"{prompt} {pick(rng, YES_NO if answer in ('yes', 'no') else ONE_WORD)}"


def _varied(found: Sequence[Exchange], rng: np.random.Generator) -> list[Exchange]:
    shuffled = [found[i] for i in rng.permutation(len(found)).tolist()]
    return [
        Exchange(item.prompt.replace("picture", "image"), item.answer, item.task) if rng.random() < REWORDED else item
        for item in shuffled
    ]
