"""Language models as methods ask them: prompts in, texts out, the same for a local model and for one that is scripted.

A method takes any `LanguageModel` and never learns which one it talks to. `HFLM` runs a causal model of
Hugging Face (`smollm2()` the one that comes with foveal); `ScriptedLM` says what a test wants to hear.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:  # a scripted model needs no torch
    import torch
    from jaxtyping import Int
    from torch import Tensor


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


class HFLM(LanguageModel):
    """A causal language model of Hugging Face with its tokenizer.

    Args:
        model: any model with ``generate``, such as ``AutoModelForCausalLM`` gives.
        tokenizer: with a chat template if it is to answer conversations; its padding side does not matter.
        batch_size: prompts that run at once.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """See `LanguageModel.generate`. Deterministic at temperature 0 and for a given state of ``generator``.

        Raises ValueError for an empty prompt, one that leaves no room in the model's context, and sampling without a
        generator.
        """
        _check(prompts, stop, max_new_tokens, temperature)
        if temperature > 0 and generator is None:
            raise ValueError(f"temperature={temperature} draws tokens: pass generator=torch.Generator().manual_seed(…)")
        ids = [self._encode(prompt, max_new_tokens) for prompt in prompts]
        texts: list[str] = []
        for start in range(0, len(ids), self.batch_size):
            batch = ids[start : start + self.batch_size]
            new = self._continue(batch, max_new_tokens, temperature, stop, generator)
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [_cut(text, stop) for text in texts]

    def _encode(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt)["input_ids"]
        else:
            text = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself
        room = getattr(self.model.config, "max_position_embeddings", None)
        if not ids:
            raise ValueError(f"prompts holds {prompt!r}, which has no token: write at least one word")
        if room is not None and len(ids) + max_new_tokens > room:
            raise ValueError(
                f"prompts holds one of {len(ids)} tokens; with max_new_tokens={max_new_tokens} the model's context of "
                f"{room} is too small: shorten the prompt"
            )
        return ids

    def _continue(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str],
        generator: torch.Generator | None,
    ) -> Int[Tensor, "b t"]:
        """New tokens only. Prompts are padded on the left, so that every row goes on from its own last token."""
        import torch
        from transformers import GenerationConfig

        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        pad = 0 if pad is None else pad  # any id: it is masked
        length = max(map(len, prompts))
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts])
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=pad,
            repetition_penalty=1.0,  # instruction-tuned checkpoints often ship another value
            **(drawing if temperature > 0 else {"do_sample": False}),
        )
        stopping = [_StopStrings(self.tokenizer, stop, length)] if stop else []
        device = self.model.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # Hugging Face draws from the global generator only
            if temperature > 0 and generator is not None:
                seed = torch.randint(2**62, (), generator=generator, device=generator.device)
                torch.manual_seed(int(seed))
            output = self.model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config, stopping_criteria=stopping
            )
        return output[:, length:]


class _StopStrings:
    """Ends a row as soon as its new text holds one of the strings (a string can start and end within tokens)."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length

    def __call__(self, ids: Int[Tensor, "b n"], scores: Any, **_: Any) -> Any:
        import torch

        texts = self.tokenizer.batch_decode(ids[:, self.prompt_length :], skip_special_tokens=True)
        return torch.tensor([any(string in text for string in self.stop) for text in texts], device=ids.device)


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
        _check(prompts, stop, max_new_tokens, temperature)
        return [_cut(self._answer(prompt), stop) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> str:
        self.calls.append(prompt)
        if callable(self.replies):
            return self.replies(prompt)
        if len(self.calls) > len(self.replies):
            raise ValueError(f"replies: all {len(self.replies)} were given, none is left for {prompt!r}")
        return self.replies[len(self.calls) - 1]


def smollm2() -> HFLM:
    """SmolLM2-135M-Instruct from the zoo: answers in short sentences, knows little and invents the rest."""
    from foveal import zoo

    part = zoo.load("smollm2")
    return HFLM(part.model, part.tokenizer)


def _check(prompts: Sequence[Prompt], stop: Sequence[str], max_new_tokens: int, temperature: float) -> None:
    if isinstance(prompts, str) or any(isinstance(prompt, dict) for prompt in prompts):
        raise ValueError(f"prompts={prompts!r} is one prompt: pass a list of prompts")
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop={stop!r}: pass a list of strings, none of them empty")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: must be 0 or a positive number")


def _cut(text: str, stop: Sequence[str]) -> str:
    for string in stop:
        text = text.split(string, 1)[0]
    return text
