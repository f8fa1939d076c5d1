"""A rule-based language model that writes errors into true captions of the world, as POVID has a large one do."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from foveal.data.world.absent import Negatives
from foveal.data.world.phrases import article, pick
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import COLOURS, PLURALS, SIZES
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.llm import LanguageModel, Prompt

SWAPS = (("left", "right"), ("above", "below"), ("upper", "lower"), ("top", "bottom"), ("front of", "behind"))
_NEGATIVES = Negatives("adversarial", LLAVA_WORLD)


class Liar(LanguageModel):
    """Answers POVID's messages. What it writes has the length and the style of what is true.

    Args:
        scenes: true caption -> what it is about.
        rng: chooses what is changed.
    """

    def __init__(self, scenes: Mapping[str, Scene], rng: np.random.Generator) -> None:
        self.scenes, self.rng = scenes, rng

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        return [self._answer(prompt if isinstance(prompt, str) else prompt[-1]["content"]) for prompt in prompts]

    def _answer(self, message: str) -> str:
        caption = message.split("Correct answer: ")[1].split("\n\n")[0]
        scene = self.scenes[caption]
        kind = next(name for name in ("co-occurrence", "relation", "attribute") if f"error: {name}" in message)
        if kind == "relation":
            changed = _swapped(caption, SWAPS)
        elif kind == "attribute":
            changed = _attribute(caption, self.rng)
        else:
            changed = caption
        return changed if changed != caption else _companion(caption, scene, self.rng)


def _companion(caption: str, scene: Scene, rng: np.random.Generator) -> str:
    """One noun becomes that of something absent that usually goes with what is there."""
    noun, other = pick(rng, scene.things).noun, _NEGATIVES.draw(scene, rng)
    if other is None:
        return caption
    text = re.sub(rf"\b{PLURALS[noun]}\b", PLURALS[other], caption)
    text = re.sub(rf"\b([Aa])n? {noun}\b", lambda found: f"{found[1]}{article(other)[1:]} {other}", text)
    return re.sub(rf"\b{noun}\b", other, text)


def _swapped(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Both words of every pair change places."""
    other = {word: pair[1 - place] for pair in pairs for place, word in enumerate(pair)}
    return re.sub("|".join(rf"\b{word}\b" for word in other), lambda found: other[found[0]], text)


def _attribute(text: str, rng: np.random.Generator) -> str:
    """Every colour and size becomes another one."""
    groups = (tuple(COLOURS), SIZES)
    others = {word: pick(rng, [other for other in group if other != word]) for group in groups for word in group}
    return re.sub("|".join(rf"\b{word}\b" for word in others), lambda found: others[found[0]], text)
