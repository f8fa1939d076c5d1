"""What a language model is to the methods, and the checks that every kind of it makes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:  # a scripted model needs no torch
    import torch


class Turn(TypedDict):
    """One message of a conversation."""

    role: str
    """ "system", "user" or "assistant"."""
    content: str


Prompt = str | Sequence[Turn]
"""A text to be continued, or a conversation to be answered."""


class LanguageModel(Protocol):
    """What methods ask for. Own models inherit from it and write `generate`; they get `complete` for it."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """What the model writes after each prompt, cut before the first of the ``stop`` strings.

        Args:
            temperature: 0 takes the most probable token; above it tokens are drawn, with ``generator`` alone.
        """

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """The answer to one conversation, without blanks around it; ``seed`` is what draws when ``temperature`` > 0."""
        generator = None
        if seed is not None:
            import torch

            generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "generator": generator}
        return self.generate([messages], **options)[0].strip()


def check_request(prompts: Sequence[Prompt], stop: Sequence[str], max_new_tokens: int, temperature: float) -> None:
    """ValueError naming the argument of `LanguageModel.generate` that cannot be."""
    if isinstance(prompts, str) or any(isinstance(prompt, dict) for prompt in prompts):
        raise ValueError(f"prompts={prompts!r} is one prompt: pass a list of prompts")
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop={stop!r}: pass a list of strings, none of them empty")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: must be 0 or a positive number")


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings."""
    for string in stop:
        text = text.split(string, 1)[0]
    return text
