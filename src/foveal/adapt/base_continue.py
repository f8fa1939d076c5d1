"""A small language model as the writer of templates: it goes on with a list of them, which it can, and need not obey.

Models of a few hundred million parameters seldom answer the request for a template with a template. Pretrained on lists
of all kinds, they do continue one in its form. So the conversation is rewritten as such a list, and one line is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foveal.llm import HFLM, Turn

LONGEST = 16
"""Tokens of a template."""


class ListContinuer(HFLM):
    """A local model that answers conversations of a search by going on with a list; it can be steered, as any `HFLM`.

    Args:
        lm: whose model and tokenizer it uses. Tokens are drawn with top-k 50 and top-p 0.9, as in GLOV.
        as_list: the text to go on with, from a conversation.
        first: what stands before the answer.

    Attributes:
        replies: all answers so far.
    """

    def __init__(self, lm: HFLM, as_list: Callable[[Sequence[Turn]], str], first: str = "") -> None:
        super().__init__(lm.model, lm.tokenizer, top_k=50, top_p=0.9)
        self.as_list, self.first = as_list, first
        self.replies: list[str] = []

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """One line, of at most `LONGEST` tokens."""
        options: dict[str, Any] = {"max_new_tokens": min(max_new_tokens, LONGEST), "temperature": temperature}
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        said = self.generate([self.as_list(messages)], **options, stop=["\n"], generator=generator)[0]
        self.replies.append(self.first + " ".join(said.split()))
        return self.replies[-1]
