"""Preference pairs as the batches that the objectives take, for the LLaVA family of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.align.base import IGNORE, SIDES, TILED
from foveal.align.base_noise import STEPS, add_diffusion_noise

Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Pair:
    """One picture and two answers to one prompt."""

    picture: Picture
    prompt: str
    """Without an ``<image>`` mark: the chat template writes it."""
    chosen: str
    rejected: str


class PairCollator:
    """Pairs to a batch; also single answers, for plain fine-tuning.

    Only the tokens of an answer and its end are labels. What is longer than ``max_length`` loses the end of its answer,
    and never a token of the picture.

    Args:
        processor: of the model, with a chat template and a tokenizer that has an end token.
        max_length: tokens, those of the picture included.
        noise_step: with one, the batch also holds ``pixel_values_noisy``, of pictures noised before all preprocessing
            and rounded to 8 bits again (see `foveal.align.povid`).
        seed: the noise of a picture is a function of this and of the picture's bytes, so that it is the same in every
            epoch and every process.
    """

    def __init__(
        self, processor: Any, max_length: int | None = None, *, noise_step: int | None = None, seed: int = 0
    ) -> None:
        if not getattr(processor, "chat_template", None) or processor.tokenizer.eos_token is None:
            raise ValueError(f"processor={type(processor).__name__} needs a chat template, and a tokenizer with an end")
        if noise_step is not None and not 0 <= noise_step < STEPS:
            raise ValueError(f"noise_step={noise_step}: must lie in [0, {STEPS})")
        self.processor, self.max_length, self.noise_step, self.seed = processor, max_length, noise_step, seed
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """ValueError: ``max_length`` leaves no room for the answer of a pair."""
        batch: dict[str, Tensor] = {}
        for side in SIDES:
            found = self.answers([(pair.picture, pair.prompt, getattr(pair, side)) for pair in pairs])
            shared = {name: found[name] for name in ("pixel_values", *TILED) if name in found}
            batch |= shared | {f"{side}_{name}": found[name] for name in found if name not in shared}
        if self.noise_step is not None:
            noisy = [self._noisy(pair.picture, self.noise_step) for pair in pairs]
            images = self.processor.image_processor(noisy, return_tensors="pt")
            batch["pixel_values_noisy"] = images["pixel_values"]
        return batch

    def answers(self, rows: Sequence[tuple[Picture, str, str]]) -> dict[str, Tensor]:
        """Picture, prompt and answer of each row as a model's inputs with labels, padded on the right."""
        texts, lengths = [], []
        for _, prompt, answer in rows:
            asked, whole = self.written(prompt, answer)
            texts.append(whole)
            lengths.append(self._answer_length(asked, whole))
        begin = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=[[picture] for picture, *_ in rows],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=not (begin and texts[0].startswith(begin)),  # some templates write the first themselves
        )
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        for row, (mask, length) in enumerate(zip(inputs["attention_mask"], lengths, strict=True)):
            end = int(mask.sum())
            labels[row, end - length : end] = inputs["input_ids"][row, end - length : end]
        return self._cut({**_tensors(inputs), "labels": labels})

    def written(self, prompt: str, answer: str) -> tuple[str, str]:
        """The prompt, and prompt and answer with its end, as the chat template writes them.

        ValueError: one of them holds the mark of a picture, or the template writes a prompt differently when an answer
        follows it.
        """
        mark = getattr(self.processor, "image_token", "<image>")
        for name, text in (("prompt", prompt), ("answer", answer)):
            if mark in text:
                raise ValueError(f"{name}={text!r} holds {mark}: leave it out, the chat template writes it")
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        fill, end = self.processor.apply_chat_template, self.processor.tokenizer.eos_token
        asked = fill([user], add_generation_prompt=True, tokenize=False)
        whole = fill([user, assistant], tokenize=False)
        if not whole.startswith(asked.rstrip()):
            raise ValueError(
                f"processor: the chat template begins {whole[: len(asked)]!r} with an answer and {asked!r} without"
            )
        whole = whole.rstrip()
        return asked, whole if whole.endswith(end) else whole + end

    def _answer_length(self, asked: str, whole: str) -> int:
        """Tokens of the answer; where both texts meet, tokens may merge, so it is what differs that counts."""
        before, after = self.processor.tokenizer([asked, whole], add_special_tokens=False).input_ids
        same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
        return len(after) - same

    def _cut(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.max_length is None or inputs["input_ids"].shape[1] <= self.max_length:
            return inputs
        for name in ("input_ids", "attention_mask", "labels"):
            inputs[name] = inputs[name][:, : self.max_length]
        if bool((inputs["labels"] == IGNORE).all(1).any()):
            raise ValueError(f"max_length={self.max_length} leaves no room for an answer after picture and prompt")
        return inputs

    def _noisy(self, picture: Picture, step: int) -> Picture:
        entropy = np.frombuffer(picture.tobytes(), np.uint8)[:: max(1, picture.size // 512)]
        words = np.random.SeedSequence([self.seed, *entropy.tolist()]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        noisy = add_diffusion_noise(torch.from_numpy(picture.copy()) / 255, step, generator=generator, clamp=True)
        return (255 * noisy).round().byte().numpy()


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
