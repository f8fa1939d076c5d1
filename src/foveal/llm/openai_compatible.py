"""A language model behind OpenAI's interface: a provider, vLLM, llama.cpp, Ollama or ``transformers serve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.llm.base import LanguageModel, Prompt, Turn, check_request, cut_at
from foveal.llm.cost import CostMeter
from foveal.llm.endpoint import Endpoint, EndpointError
from foveal.llm.replies import ReplyCache

if TYPE_CHECKING:
    import torch

MOST_STOPS = 4
"""Stop strings that the interface allows; more are cut here."""


class OpenAICompatibleLM(LanguageModel):
    """Conversations go to ``chat/completions``, texts to be continued to ``completions``.

    Args:
        base_url: such as ``http://localhost:8000/v1``; without a path, ``/v1`` is added.
        model: its name on that server.
        api_key: sent as bearer token, and never shown or stored.
        timeout: seconds of silence after which a try has failed.
        retries: how often a request is sent again, see `foveal.llm.endpoint`.
        backoff: seconds before the first of them; each further wait is twice as long.
        parallel: most requests at once.
        cache: whether answers are kept on the disk (see `ReplyCache`), or the folder for them. Empty ones are not kept.
        prices: for a million tokens of prompts and of answers; then ``meter.cost`` says what was spent.
        extra: further fields of every request; None takes one away that servers of some models refuse:
            ``{"max_tokens": None, "max_completion_tokens": 100}``.

    Attributes:
        meter: calls, tokens, retries and answers from the cache so far.

    Raises:
        ValueError: naming an argument that cannot be. `EndpointError`, a ValueError, when asking fails.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        parallel: int = 4,
        cache: bool | Path = True,
        prices: tuple[float, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not model.strip():
            raise ValueError(f"model={model!r}: give the name that the server knows it by")
        if parallel < 1:
            raise ValueError(f"parallel={parallel}: must be at least 1")
        self.endpoint = Endpoint(base_url, api_key, timeout, retries, backoff)
        self.model, self.parallel, self.extra = model, parallel, dict(extra or {})
        self.cache = ReplyCache(None if cache is True else Path(cache)) if cache else None
        self.meter = CostMeter(prices)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """See `LanguageModel.generate`. Above temperature 0 each request carries a seed that ``generator`` draws.

        Whether the server heeds a seed is its own affair; with the cache, the same state of the generator gives the
        same answers in any case.
        """
        seeds: list[int | None] = [None] * len(prompts)
        if temperature > 0 and generator is not None:
            import torch

            drawn = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device)
            seeds = list(drawn.tolist())
        bodies = self._bodies(prompts, seeds, max_new_tokens, temperature, stop)
        with ThreadPoolExecutor(self.parallel) as pool:
            answers = [pool.submit(self._answer, body) for body in bodies]
            try:
                return [cut_at(answer.result(), stop) for answer in answers]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C, ask nothing further

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """See `LanguageModel.complete`; ``seed`` is sent as it is."""
        (body,) = self._bodies([messages], [seed], max_new_tokens, temperature, ())
        return self._answer(body).strip()

    def _bodies(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int | None],
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str],
    ) -> list[dict[str, Any]]:
        """The requests; they are also what the cache knows answers by."""
        check_request(prompts, stop, max_new_tokens, temperature)
        if any(not prompt for prompt in prompts):
            raise ValueError("prompts holds an empty one: write at least one word")
        if temperature > 0 and None in seeds:
            raise ValueError(f"temperature={temperature} draws tokens: pass a seed, or a generator to generate")
        options: dict[str, Any] = {"model": self.model, "max_tokens": max_new_tokens, "temperature": temperature}
        if 0 < len(stop) <= MOST_STOPS:
            options["stop"] = list(stop)
        bodies = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            text = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(turn) for turn in prompt]}
            drawn = {"seed": seed} if temperature > 0 else {}
            body = {**options, **text, **drawn, **self.extra}
            bodies.append({name: value for name, value in body.items() if value is not None})
        return bodies

    def _answer(self, body: dict[str, Any]) -> str:
        request = {"base_url": self.endpoint.base_url, **body}
        stored = self.cache.get(request) if self.cache else None
        if stored is not None:
            self.meter.found()
            return stored
        path = "completions" if "prompt" in body else "chat/completions"
        answer = self.endpoint.request(path, body, self.meter.retried)
        text = self._text(answer)
        usage = answer.get("usage")
        self.meter.called(*(_count(usage, name) for name in ("prompt_tokens", "completion_tokens")))
        if self.cache and text.strip():
            self.cache.put(request, text)
        return text

    def _text(self, answer: dict[str, Any]) -> str:
        """Of the first choice; a model that said nothing gives an empty text."""
        try:
            choice = answer["choices"][0]
            said = choice["text"] if "text" in choice else choice["message"].get("content")
            if isinstance(said, list):  # of parts, as some servers send it
                said = "".join(part.get("text", "") for part in said)
            if said is None or isinstance(said, str):
                return said or ""
        except (KeyError, IndexError, TypeError, AttributeError):
            pass
        raise EndpointError(
            f"base_url={self.endpoint.base_url!r}: the answer holds no text: {str(answer)[:200]}; "
            "is this an OpenAI-compatible server?"
        )


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else None
