"""A vision–language model of Hugging Face's image-text-to-text classes: pictures and a prompt in, text out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from foveal.evaluate.base import Kind

Images = Sequence[UInt8[np.ndarray, "_ _ 3"]]
T = TypeVar("T")


class Request(NamedTuple):
    """What a user says in one turn: pictures first, then the prompt."""

    images: Images
    prompt: str


class VisionLanguage:
    """Greedy answers in batches, each the same as alone: prompts are padded on the left and of like length in a batch.

    Args:
        model: with ``generate``, in evaluation mode; methods may be attached to it.
        processor: makes its inputs; its chat template, if it has one, is filled with one user turn.
        batch_size: most requests at once.
        options: further arguments of ``generate``; or what makes them from the inputs of each batch, as a
            ``logits_processor`` needs that looks at the pictures.
    """

    kind: Kind = "vision-language"

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 32,
        options: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.options = options or {}
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def answer(self, requests: Sequence[tuple[Images, str]], max_new_tokens: int = 32) -> list[str]:
        """The greedy answer to each request, without special tokens and surrounding blanks."""
        return self._each(requests, lambda batch: self._generate(batch, max_new_tokens, {}))

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any], Images]]) -> list[str]:
        """lmms-eval's call: (context, generation arguments, images); texts end before any of ``until``.

        Of the arguments ``until`` and ``max_new_tokens`` are read, the others go to ``generate``.
        """
        texts = []
        for context, arguments, images in requests:
            known = {"until": (), "max_new_tokens": 32, **arguments}
            stops, longest = known.pop("until"), known.pop("max_new_tokens")
            text = self._generate([Request(images, context)], longest, known)[0]
            for stop in (stops,) if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            texts.append(text.strip())
        return texts

    def loglikelihood(self, requests: Sequence[tuple[str, str, Images]]) -> list[tuple[float, bool]]:
        """lmms-eval's call: (context, continuation, images) to log-probability, and whether it is the greedy choice.

        The continuation is taken as it is written: with a blank in front where the template wants one.
        """
        found = []
        for context, continuation, images in requests:
            target = self.tokenizer(continuation, add_special_tokens=False, return_tensors="pt").input_ids
            if not target.numel():
                raise ValueError(f"continuation={continuation!r} has no token: give some text")
            logits = self._logits(self._inputs([Request(images, context)]), target.to(self.model.device))
            chosen = logits.log_softmax(-1).gather(-1, target[0, :, None].to(logits.device))
            greedy = bool((logits.argmax(-1).cpu() == target[0]).all())
            found.append((float(chosen.double().sum()), greedy))
        return found

    def yes_no(self, requests: Sequence[tuple[Images, str]]) -> list[tuple[float, float]]:
        """Log-probabilities that the answer begins with yes and with no, in any spelling of theirs.

        Raises:
            ValueError: the tokenizer begins both words alike.
        """
        yes, no = (self._first_tokens(word) for word in ("yes", "no"))
        if not yes - no or not no - yes:
            raise ValueError(f"{type(self.tokenizer).__name__} begins yes and no with the same token: use `answer`")

        def scores(batch: Sequence[Request]) -> list[tuple[float, float]]:
            last = self._forward(self._inputs(batch))[:, -1].float().log_softmax(-1)
            columns = [last[:, sorted(tokens)].logsumexp(-1).tolist() for tokens in (yes - no, no - yes)]
            return list(zip(*columns))

        return self._each(requests, scores)

    def _first_tokens(self, word: str) -> set[int]:
        forms = [blank + spelled for blank in ("", " ") for spelled in (word, word.capitalize())]
        return {self.tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms}

    def _each(self, requests: Sequence[tuple[Images, str]], run: Callable[[Sequence[Request]], list[T]]) -> list[T]:
        """Run on batches of like requests, and give the results in the order of the requests."""
        found: dict[int, T] = {}
        for numbers in self._batches(requests):
            results = run([Request(*requests[i]) for i in numbers])
            found.update(zip(numbers, results, strict=True))
        return [found[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[tuple[Images, str]]) -> Iterator[list[int]]:
        """As many pictures in each request of a batch, and prompts of about the same length."""
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i][0]), len(requests[i][1]), i))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) == self.batch_size or len(requests[i][0]) != len(requests[batch[0]][0])):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.no_grad()
    def _generate(self, batch: Sequence[Request], max_new_tokens: int, arguments: Mapping[str, Any]) -> list[str]:
        inputs = self._inputs(batch)
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        options = self.options(inputs) if callable(self.options) else self.options
        settings = {**greedy, "pad_token_id": self.tokenizer.pad_token_id, **options, **arguments}
        written = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        prompt = inputs["input_ids"]
        if written.shape[1] >= prompt.shape[1] and torch.equal(written[:, : prompt.shape[1]], prompt):
            written = written[:, prompt.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    @torch.no_grad()
    def _forward(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.model(**inputs).logits

    def _logits(self, inputs: Mapping[str, Any], target: Tensor) -> Tensor:
        """Logits, (t, v), that predict each of t target tokens written after the prompt of one request.

        The prompt is read before the target: a method that is attached must not choose its tokens by the answer.
        """
        from transformers import DynamicCache

        parameters = inspect.signature(self.model.forward).parameters
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        cached = {"cache" if "cache" in parameters else "past_key_values": cache, "use_cache": True}
        logits = self._forward({**inputs, **cached})[0, -1:]
        if target.shape[1] > 1:
            logits = torch.cat([logits, self._forward({"input_ids": target[:, :-1], **cached})[0]])
        return logits.float()

    def _inputs(self, batch: Sequence[Request]) -> Any:
        """Token ids, masks and pixels of a batch whose requests have equally many pictures."""
        texts = [self._prompt(request) for request in batch]
        pictures = [[Image.fromarray(image) for image in request.images] for request in batch]
        begin = self.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=pictures if pictures[0] else None,
            padding=True,
            return_tensors="pt",
            # some templates write the first token themselves
            add_special_tokens=not (begin and texts[0].startswith(begin)),
        )
        return inputs.to(self.model.device, self.model.dtype)

    def _prompt(self, request: Request) -> str:
        if not getattr(self.processor, "chat_template", None):
            return request.prompt
        content = [*({"type": "image"} for _ in request.images), {"type": "text", "text": request.prompt}]
        turn = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
