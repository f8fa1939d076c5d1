"""VladVA on pictures and texts: prompts in the model's own chat template, batches for training, embedding, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from foveal.adapt.vladva import VladvaModel
from foveal.data.files import write_atomically

IMAGE_PROMPT = "Summarize the provided image in one word:"
TEXT_PROMPT = "Summarize the provided text in one word:"
_TEXT, _ANSWER = "\uf8f0", "\uf8f1"  # private-use letters, which no template holds

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]


@dataclass(frozen=True)
class Wording:
    """The chat template cut into token ids around picture or caption, and what stands before and after an answer."""

    image_prefix_ids: list[int]
    image_prompt_ids: list[int]
    text_prefix_ids: list[int]
    text_prompt_ids: list[int]
    answer_start: str
    answer_end: str


def wording(processor: Any, image_prompt: str = IMAGE_PROMPT, text_prompt: str = TEXT_PROMPT) -> Wording:
    """What the processor's chat template makes of the two requests.

    Raises ValueError for a processor without a chat template, or one that drops picture or text.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"processor={type(processor).__name__} has no chat template: give VladvaModel the token ids")

    def rendered(content: list[dict[str, str]], answer: str | None = None) -> str:
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)

    shown = [{"type": "image"}, {"type": "text", "text": image_prompt}]
    image, text = rendered(shown), rendered([{"type": "text", "text": f"{_TEXT}\n{text_prompt}"}])
    for name, whole, mark in (("picture", image, processor.image_token), ("text", text, _TEXT)):
        if whole.count(mark) != 1:
            raise ValueError(
                f"the chat template of {type(processor).__name__} does not show its {name} once: {whole!r}"
            )
    answered = rendered(shown, _ANSWER)
    start, end = "", processor.tokenizer.eos_token
    if answered.startswith(image) and _ANSWER in answered:
        start, end = answered[len(image) :].split(_ANSWER)
    before, after = image.split(processor.image_token)
    before_text, after_text = text.split(_TEXT)
    return Wording(
        image_prefix_ids=_ids(processor, before, first=True),
        image_prompt_ids=_ids(processor, after, first=False),
        text_prefix_ids=_ids(processor, before_text, first=True),
        text_prompt_ids=_ids(processor, after_text, first=False),
        answer_start=start,
        answer_end=end,
    )


def _ids(processor: Any, text: str, first: bool) -> list[int]:
    """``first``: with the tokens that begin a sequence, unless the template has written them already."""
    tokenizer = processor.tokenizer
    begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    if not first or begun:
        return tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(text).input_ids  # some tokenizers add an end, too
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token) else ids


class VladvaEncoder:
    """A `VladvaModel` with its processor: embeds pictures and texts, and makes training batches of them.

    Args:
        lvlm: a LLaVA-family model, adapted in place; its processor needs a chat template.
        processor: with ``image_processor`` and ``tokenizer``.
        rank, alpha, dropout, generator: see `VladvaModel`.
        image_prompt, text_prompt: requests that the soft prompts start from.
        batch_size: most pictures or texts that are embedded at once.
    """

    def __init__(
        self,
        lvlm: Any,
        processor: Any,
        rank: int = 16,
        alpha: float = 16,
        *,
        dropout: float = 0.0,
        image_prompt: str = IMAGE_PROMPT,
        text_prompt: str = TEXT_PROMPT,
        generator: torch.Generator | None = None,
        batch_size: int = 32,
    ) -> None:
        self.processor, self.batch_size = processor, batch_size
        self.wording = wording(processor, image_prompt, text_prompt)
        self.settings = {"rank": rank, "alpha": alpha, "image_prompt": image_prompt, "text_prompt": text_prompt}
        says = self.wording
        self.model = VladvaModel(
            lvlm,
            says.image_prompt_ids,
            says.text_prompt_ids,
            rank,
            alpha,
            dropout=dropout,
            image_prefix_ids=says.image_prefix_ids,
            text_prefix_ids=says.text_prefix_ids,
            generator=generator,
        ).eval()

    # Embedding

    def encode_image(self, images: Pictures) -> Float[Tensor, "n d"]:
        """Unit rows in float32 on the CPU, one for each RGB picture of any size."""
        return self._batched(images, lambda part: self.model.embed_image(**self.pixels(part)))

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit rows in float32 on the CPU, one for each text. ValueError for an empty one."""
        return self._batched(texts, lambda part: self.model.embed_text(*self.captions(part)))

    @torch.no_grad()
    def _batched(self, inputs: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor]) -> Float[Tensor, "n d"]:
        if not len(inputs):
            raise ValueError("nothing to encode: give at least one picture or text")
        parts = [inputs[start : start + self.batch_size] for start in range(0, len(inputs), self.batch_size)]
        return torch.cat([encode(part).float().cpu() for part in parts])

    # Batches

    def batch(self, images: Pictures, short: Sequence[str], long: Sequence[str | None] | None = None) -> dict[str, Any]:
        """What ``self.model(**batch)`` takes; a picture without a long caption has None."""
        ids, mask = self.captions(short)
        made = {**self.pixels(images), "short_ids": ids, "short_mask": mask}
        if long is not None:
            made["long_ids"], made["long_mask"] = self.answers(long)
        return made

    def pixels(self, images: Pictures) -> dict[str, Any]:
        """``pixel_values`` and what else the image processor gives."""
        pictures = [Image.fromarray(image) for image in images]
        found = self.processor.image_processor(images=pictures, return_tensors="pt")
        return dict(found.to(self._device))

    def captions(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], Int[Tensor, "n l"]]:
        """Token ids and mask of texts, without special tokens, padded on the right."""
        for number, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"texts[{number}]={text!r} is empty: leave it out")
        return self._padded(texts)

    def answers(self, texts: Sequence[str | None]) -> tuple[Int[Tensor, "n l"], Int[Tensor, "n l"]]:
        """The same of answers as the template writes them, with their end; None has no token."""
        around = self.wording.answer_start, self.wording.answer_end
        return self._padded([text and f"{around[0]}{text}{around[1]}" for text in texts])

    def _padded(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        rows = [self.processor.tokenizer(text, add_special_tokens=False).input_ids if text else [] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, : len(row)] = 1
        return ids.to(self._device), mask.to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.model.logit_scale.device

    # Files

    def save(self, path: str | Path) -> None:
        """Prompts, LoRA and scale as one safetensors file, which `load` puts on the same model again."""
        state = {name: value.contiguous().cpu() for name, value in self.model.adapter_state_dict().items()}
        write_atomically(Path(path), save(state, {"vladva": json.dumps(self.settings)}))

    @classmethod
    def load(cls, lvlm: Any, processor: Any, path: str | Path, batch_size: int = 32) -> VladvaEncoder:
        """The saved adapter on the model that it was trained on.

        Raises FileNotFoundError, and ValueError for another kind of file, a damaged one, and another model's.
        """
        settings, state = read_adapter(Path(path))
        encoder = cls(lvlm, processor, **settings, batch_size=batch_size)
        try:
            encoder.model.load_adapter_state_dict(state)
        except ValueError:
            encoder.model.detach()
            raise
        return encoder


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a file by `VladvaEncoder.save`. Raises as `VladvaEncoder.load`."""
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("vladva")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is damaged or no safetensors file: {error}") from error
    if about is None:
        raise ValueError(f"path={str(path)!r} holds no VladVA adapter: give a file by VladvaEncoder.save")
    return json.loads(about), state
