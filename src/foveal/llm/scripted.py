"""A language model that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from foveal.llm.base import LanguageModel, Prompt, check_request, cut_at

if TYPE_CHECKING:
    import torch


class ScriptedLM(LanguageModel):
    """Replies by script, for tests and rules: from a list in its order, or by a function of the prompt.

    ``calls`` holds every prompt so far.
    """

    def __init__(self, replies: Sequence[str] | Callable[[Prompt], str]) -> None:
        if isinstance(replies, str):
            raise ValueError(f"replies={replies!r}: pass a list of replies, or a function of the prompt")
        self.replies = replies if callable(replies) else list(replies)
        self.calls: list[Prompt] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """The next replies, cut at ``stop``; other options are checked and change nothing.

        Raises ValueError when a list of replies has run out.
        """
        check_request(prompts, stop, max_new_tokens, temperature)
        return [cut_at(self._answer(prompt), stop) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> str:
        self.calls.append(prompt)
        if callable(self.replies):
            return self.replies(prompt)
        if len(self.calls) > len(self.replies):
            raise ValueError(f"replies: all {len(self.replies)} were given, none is left for {prompt!r}")
        return self.replies[len(self.calls) - 1]
