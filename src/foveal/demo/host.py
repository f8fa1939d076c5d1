"""nano-llava as the demo talks to it: pictures and prompts in, greedy words out, and the inputs in between at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image as Pillow
from torch import Tensor

from foveal import zoo
from foveal.demo.eyes import Image


@dataclass(frozen=True)
class Spoken:
    """What was said of each picture, and how many tokens the longest of it has: as many passes did the model make."""

    texts: list[str]
    tokens: int


class Host:
    """A LLaVA and its processor; methods may be attached to ``model`` or given to `say`."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        processor.tokenizer.padding_side = "left"  # what is generated follows the prompt

    @classmethod
    def load(cls) -> Host:
        """The shipped nano-llava. FileNotFoundError with the remedy when there is none."""
        nano = zoo.load("nano-llava")
        return cls(nano.model, nano.processor)

    @property
    def side(self) -> int:
        """Patches along each side of a picture."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    def inputs(self, images: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Arguments of the model's ``generate`` for one picture with one prompt in each row."""
        texts = [self._prompt(prompt) for prompt in prompts]
        pictures = [[Pillow.fromarray(image)] for image in images]
        return dict(self.processor(text=texts, images=pictures, padding=True, return_tensors="pt"))

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Pictures as the model takes them."""
        pictures = [Pillow.fromarray(image) for image in images]
        return self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def say(self, inputs: dict[str, Tensor], longest: int, processors: Sequence[Any] = ()) -> Spoken:
        """Greedy answers of at most ``longest`` tokens, their scores corrected by logits processors."""
        written = self.model.generate(
            **inputs,
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            logits_processor=list(processors),
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return Spoken([text.strip() for text in texts], written.shape[1])

    def patches(self, input_ids: Int[Tensor, " t"], columns: Int[Tensor, " n"]) -> tuple[int, ...]:
        """Which patches of the prompt's one picture, in raster order from 0, stand in some of its columns."""
        is_image = input_ids == self.model.config.image_token_id
        number = is_image.cumsum(0) - 1
        return tuple(number[columns][is_image[columns]].tolist())

    def _prompt(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
