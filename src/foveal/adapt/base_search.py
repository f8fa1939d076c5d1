"""What searches for prompts with a language model share: whom they ask, and a journal from which they go on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from foveal.data.files import write_atomically
from foveal.llm import Turn


class Chat(Protocol):
    """All that a search needs of a `foveal.llm.LanguageModel`."""

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """The answer to one conversation."""


def finite_score(score: float, prompt: str) -> float:
    """The score as a float; ValueError when it is no number that can be ranked."""
    value = float(score)
    if not math.isfinite(value):
        raise ValueError(f"the score of {prompt!r} is {value}: it must be a finite number")
    return value


class SearchJournal:
    """A file of all replies and scores of a search, so that one that was stopped goes on after its last reply.

    Searches are functions of their seed and of what they are told, so a journal is no state to restore: the search
    begins anew, and replies and scores that stand in the file are not asked for a second time.

    Args:
        path: of the JSON file, written atomically after every reply; None keeps everything in memory.
        settings: all that replies and scores depend on, such as seed, data and names of the models; not the budget,
            which may be raised later.

    Raises:
        ValueError: the file is no journal, or that of a search with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.replies: list[tuple[str, str]] = []
        """Digest of the question, reply."""
        self.scores: dict[str, float] = {}
        self.given = 0
        if path is not None and path.exists():
            self._read(path)

    def model(self, lm: Chat, heard: Callable[[int], None] = lambda count: None) -> Chat:
        """``lm``, except that it gives the journal's replies first; ``heard`` is called with their number so far."""
        return _Recorded(self, lm, heard)

    def score(self, function: Callable[[str], float]) -> Callable[[str], float]:
        """``function``, called for prompts only that the journal does not know."""

        def scored(prompt: str) -> float:
            if prompt not in self.scores:
                self.scores[prompt] = finite_score(function(prompt), prompt)
            return self.scores[prompt]

        return scored

    def reply(self, digest: str, ask: Callable[[], str]) -> str:
        """The next reply: of the journal, or else of ``ask``, which is then kept."""
        if self.given == len(self.replies):
            self.replies.append((digest, ask()))
            self.save()
        elif self.replies[self.given][0] != digest:
            raise ValueError(f"{self.path}: reply {self.given + 1} answers another question; {_REMEDY}")
        self.given += 1
        return self.replies[self.given - 1][1]

    def save(self) -> None:
        """Write the file, atomically."""
        if self.path is not None:
            content = {"settings": self.settings, "replies": self.replies, "scores": self.scores}
            write_atomically(self.path, (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode())

    def _read(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            settings, replies, scores = (stored[name] for name in ("settings", "replies", "scores"))
            self.replies = [(str(digest), str(reply)) for digest, reply in replies]
            self.scores = {str(prompt): finite_score(score, prompt) for prompt, score in scores.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no journal of a search ({error}); {_REMEDY}") from error
        if settings != self.settings:
            names = sorted({*settings, *self.settings})
            changed = [name for name in names if settings.get(name) != self.settings.get(name)]
            raise ValueError(f"{path} belongs to a search with other settings ({', '.join(changed)}); {_REMEDY}")


_REMEDY = "delete it, or write to another folder"


class _Recorded:
    def __init__(self, journal: SearchJournal, lm: Chat, heard: Callable[[int], None]) -> None:
        self.journal, self.lm, self.heard = journal, lm, heard
        if (steer := getattr(lm, "steer", None)) is not None:  # whoever asks whether it can be steered hears the truth
            self.steer = steer

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        question = json.dumps([list(messages), options], sort_keys=True)
        digest = hashlib.sha256(question.encode()).hexdigest()[:16]
        reply = self.journal.reply(digest, lambda: self.lm.complete(messages, **options))
        self.heard(self.journal.given)
        return reply
