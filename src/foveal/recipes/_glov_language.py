"""Where in SmolLM2 the prompts lie that GLOV's recipe finds."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.adapt.glov import GLOVResult, contrast_pair
from foveal.llm import HFLM
from foveal.nn.steering import hidden_after

DEFAULT, BLOCK = "a photo of a <category>.", 16


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
