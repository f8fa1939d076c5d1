"""What asking a language model has cost so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class CostMeter:
    """Counts of one model; safe to add to from several threads.

    Attributes:
        prices: money for a million prompt tokens and for a million tokens of answers, as providers print them.
        calls: answers that came from the model.
        cache_hits: answers that were on the disk already.
        retries: requests that had to be sent again.
        uncounted: answers that came without numbers of tokens.
    """

    prices: tuple[float, float] | None = None
    calls: int = 0
    cache_hits: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prices is not None and (len(self.prices) != 2 or not all(price >= 0 for price in self.prices)):
            raise ValueError(f"prices={self.prices!r}: give two, for a million tokens of prompts and of answers")

    def called(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """One more answer, with the numbers of tokens as the server counted them."""
        with self._lock:
            self.calls += 1
            self.uncounted += prompt_tokens is None or completion_tokens is None
            self.prompt_tokens += prompt_tokens or 0
            self.completion_tokens += completion_tokens or 0

    def retried(self) -> None:
        with self._lock:
            self.retries += 1

    def found(self) -> None:
        """One more answer from the disk."""
        with self._lock:
            self.cache_hits += 1

    @property
    def cost(self) -> float | None:
        """In the currency of ``prices``; None without prices, or when an answer came without numbers of tokens."""
        if self.prices is None or self.uncounted:
            return None
        return (self.prompt_tokens * self.prices[0] + self.completion_tokens * self.prices[1]) / 1e6

    def summary(self) -> str:
        """One line for people."""
        said = [f"{self.calls} calls", f"{self.cache_hits} from the cache", f"{self.retries} retries"]
        said.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        if self.uncounted:
            said.append(f"{self.uncounted} answers of unknown length")
        if self.cost is not None:
            said.append(f"cost {self.cost:.4f}")
        return ", ".join(said)
