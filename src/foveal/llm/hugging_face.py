"""A causal language model of Hugging Face, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foveal.llm.base import LanguageModel, Prompt, check_request, cut_at

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor


class HFLM(LanguageModel):
    """A causal language model of Hugging Face with its tokenizer.

    Args:
        model: any model with ``generate``, such as ``AutoModelForCausalLM`` gives.
        tokenizer: with a chat template if it is to answer conversations; its padding side does not matter.
        batch_size: prompts that run at once.
        top_k, top_p: where tokens are drawn, of the ``top_k`` most probable ones only (0: of all), and of the fewest
            that have ``top_p`` of the probability. Small models write little of use without.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 16, *, top_k: int = 0, top_p: float = 1.0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"top_k={top_k}, top_p={top_p}: must be at least 0, and a share above 0 up to 1")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.top_k, self.top_p = top_k, top_p

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
        check_request(prompts, stop, max_new_tokens, temperature)
        if temperature > 0 and generator is None:
            raise ValueError(f"temperature={temperature} draws tokens: pass generator=torch.Generator().manual_seed(…)")
        ids = [self._encode(prompt, max_new_tokens) for prompt in prompts]
        texts: list[str] = []
        for start in range(0, len(ids), self.batch_size):
            batch = ids[start : start + self.batch_size]
            new = self._continue(batch, max_new_tokens, temperature, stop, generator)
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [cut_at(text, stop) for text in texts]

    @contextmanager
    def steer(self, positive: str, negative: str, *, alpha: float = 1.0, layer: int | None = None) -> Iterator[None]:
        """While entered, answers are pushed from ``negative`` towards ``positive`` (GLOV, `foveal.nn.steering`).

        Args:
            alpha: how far; negative values push the other way.
            layer: block whose output is moved, from 0; None: 17/32 of the way up.
        """
        import torch

        from foveal.nn.steering import LayerSteering, decoder_blocks, hidden_after, offset_vector

        blocks = len(decoder_blocks(self.model))
        block = min(round(17 / 32 * blocks), blocks - 1) if layer is None else layer
        ids = [torch.tensor(self._encode(text, max_new_tokens=1)) for text in (positive, negative)]
        ends = [hidden_after(self.model, row, block) for row in ids]
        with LayerSteering(self.model, block, offset_vector(*ends, alpha=alpha)):
            yield

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
        drawing = {"do_sample": True, "temperature": temperature, "top_k": self.top_k, "top_p": self.top_p}
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


def smollm2() -> HFLM:
    """SmolLM2-135M-Instruct from the zoo: answers in short sentences, knows little and invents the rest."""
    from foveal import zoo

    part = zoo.load("smollm2")
    return HFLM(part.model, part.tokenizer)
