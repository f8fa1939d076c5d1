"""What GLOV's recipe says to SmolLM2, and where in it what comes back lies."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.adapt.glov import GLOVResult, contrast_pair
from foveal.llm import HFLM, Turn
from foveal.nn.steering import hidden_after

DEFAULT, BLOCK = "a photo of a <category>.", 16
FORM = ("my <category>", "one <category> there")


def as_list(messages: Sequence[Turn]) -> str:
    """The prompts of a message from the worst to the best, after two that show the form."""
    shown = re.findall(r"^accuracy (\d+): (.*)$", messages[-1]["content"], re.MULTILINE)
    rows = [("0", form) for form in FORM] + sorted(shown, key=lambda row: int(row[0]))
    lines = [f"accuracy {score}: {prompt}" for score, prompt in rows]
    return "\n".join(["Templates for pictures, better and better:", *lines, f"accuracy {int(rows[-1][0]) + 5}:"])


def towards(lm: HFLM, result: GLOVResult) -> float:
    """How much closer new prompts are to the best than to the second best that there was before them."""

    def embedding(prompt: str) -> Tensor:
        return hidden_after(lm.model, torch.tensor(lm.tokenizer(prompt)["input_ids"]), BLOCK).mean(0)

    gains = []
    for step, prompt, _ in result.history:
        before = [(text, score) for number, text, score in result.history if number < step]
        pair = contrast_pair(*map(list, zip(*before, strict=True))) if before else None
        if pair is not None and pair[0] != DEFAULT:
            new, best, second = map(embedding, (prompt, *pair))
            gains.append(100 * float(F.cosine_similarity(new, best, 0) - F.cosine_similarity(new, second, 0)))
    return sum(gains) / len(gains) if gains else 0.0
