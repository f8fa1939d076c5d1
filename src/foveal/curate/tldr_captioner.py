"""The captioner whose picture tokens pass through a codebook, and what it needs to be trained, kept and asked.

    tokens z = vision(picture)   →   z_q, L_vq = vector_quantize(z)   →   decoder(text | z_q)   →   L_LM + L_vq

Any vision tower of transformers, and any of its causal language models with cross-attention: the paper has ViT-B/16
from DeiT and BERT-base with ``is_decoder`` and ``add_cross_attention``.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from safetensors.torch import load, save
from torch import Tensor, nn

from foveal.curate.tldr_codes import vector_quantize
from foveal.data.files import write_atomically
from foveal.nn.modes import evaluating
from foveal.zoo.quiet import quiet_loading

PROMPT = "a picture of "
CONFIG, CODEBOOK = "captioner.json", "codebook.safetensors"


@dataclass(frozen=True)
class CaptionerOutput:
    """``loss`` = ``lm`` (cross-entropy a token) + ``vq`` (the codebook's loss). ``indices``: codes of the pictures."""

    loss: Float[Tensor, ""]
    lm: Float[Tensor, ""]
    vq: Float[Tensor, ""]
    indices: Int[Tensor, "b t"]


class CodebookCaptioner(nn.Module):
    """Describes a picture by what it can say about it through T codes.

    Args:
        vision: pictures -> tokens (B, T, ``dim``), a tensor or an object with that as ``last_hidden_state``.
        decoder: a causal language model of transformers with cross-attention, or any module called with (ids, mask,
            memory) that returns logits (B, L, V).
        num_codes, dim: size of the codebook.
        beta, legacy: see `vector_quantize`.
    """

    def __init__(
        self,
        vision: nn.Module,
        decoder: nn.Module,
        num_codes: int = 1024,
        dim: int = 768,
        beta: float = 0.25,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("num_codes", num_codes), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        self.vision, self.decoder, self.beta, self.legacy = vision, decoder, beta, legacy
        self.codebook = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(num_codes, dtype=torch.int64), persistent=False)
        self._latest: Tensor | None = None

    def forward(
        self, images: Float[Tensor, "b 3 s t"], ids: Int[Tensor, "b l"], mask: Shaped[Tensor, "b l"]
    ) -> CaptionerOutput:
        """The losses of B pictures and captions: ``ids`` begin with the start token, ``mask`` is 1 for real tokens."""
        if ids.ndim != 2 or ids.shape != mask.shape or len(ids) != len(images) or not bool(mask[:, 1:].any()):
            shapes = f"images {tuple(images.shape)}, ids {tuple(ids.shape)} and mask {tuple(mask.shape)}"
            raise ValueError(f"{shapes} must be (B, 3, H, W) and twice (B, L), with a word after the start token")
        tokens = self.tokens(images)
        quantized = vector_quantize(tokens, self.codebook, self.beta, self.legacy)
        if self.training:
            self.usage += torch.bincount(quantized.indices.flatten(), minlength=len(self.codebook))
            self._latest = tokens.detach().flatten(0, 1)
        logits = self._logits(ids, mask, quantized.z_q)
        wanted = ids[:, 1:].masked_fill(~mask[:, 1:].bool(), -100)
        scores = logits[:, :-1].flatten(0, 1)
        lm = F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), wanted.flatten())
        return CaptionerOutput(lm + quantized.loss, lm, quantized.loss, quantized.indices)

    def tokens(self, images: Float[Tensor, "b 3 s t"]) -> Float[Tensor, "b t d"]:
        """What the vision tower gives, before quantisation."""
        output: Any = self.vision(images)
        tokens: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        if tokens.ndim != 3 or tokens.shape[2] != self.codebook.shape[1]:
            wanted = f"(B, T, {self.codebook.shape[1]}), as dim={self.codebook.shape[1]} says"
            raise ValueError(f"the vision tower gives {tuple(tokens.shape)}: must be {wanted}")
        return tokens

    def _logits(self, ids: Tensor, mask: Tensor, memory: Tensor) -> Float[Tensor, "b l v"]:
        if not _has_cross_attention(self.decoder):
            return self.decoder(ids, mask, memory)
        inputs = {"input_ids": ids, "attention_mask": mask, "encoder_hidden_states": memory}
        return self.decoder(**inputs, use_cache=False).logits

    @torch.no_grad()
    def codes(self, images: Float[Tensor, "b 3 s t"]) -> Int[Tensor, "b t"]:
        """The T codes of each picture, without dropout."""
        with evaluating(self):
            return vector_quantize(self.tokens(images), self.codebook, self.beta, self.legacy).indices

    @torch.no_grad()
    def reseed_dead_(self, generator: torch.Generator, least: float = 0.05) -> int:
        """When less than ``least`` of the codes were used since the last call, unused ones become latest tokens.

        Without it a codebook may collapse: codes that are never the nearest get no gradient. Call it every hundred
        steps or so in training. Returns how many codes were changed.
        """
        if self._latest is None:
            raise ValueError("nothing was quantised in training mode yet: call forward first")
        dead = (self.usage == 0).nonzero().flatten()
        collapsed = len(self.codebook) - len(dead) < least * len(self.codebook)
        self.usage.zero_()
        if not collapsed:
            return 0
        drawn = torch.randint(len(self._latest), (len(dead),), generator=generator).to(self._latest.device)
        self.codebook[dead] = self._latest[drawn].to(self.codebook.dtype)
        return len(dead)

    @torch.no_grad()
    def generate(
        self,
        images: Float[Tensor, "b 3 s t"],
        tokenizer: Any,
        *,
        prompt: str = PROMPT,
        num_beams: int = 3,
        min_length: int = 10,
        max_length: int = 30,
    ) -> list[str]:
        """One caption for each picture, without the prompt; lengths are in tokens, start and prompt included.

        Dropout is off meanwhile. ValueError when the decoder is no model of transformers, which `generate` needs, or
        has no cross-attention.
        """
        decoder: Any = self.decoder
        if not hasattr(decoder, "generate"):
            raise ValueError(f"decoder is a {type(decoder).__name__}: only models of transformers can generate")
        _has_cross_attention(decoder)
        start, end = special_ids(tokenizer)
        words = tokenizer(prompt.strip(), add_special_tokens=False).input_ids if prompt.strip() else []
        ids = torch.tensor([[start, *words]] * len(images), device=images.device)
        with evaluating(self):
            memory = vector_quantize(self.tokens(images), self.codebook, self.beta, self.legacy).z_q
            found = decoder.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                encoder_hidden_states=memory,
                num_beams=num_beams,
                do_sample=False,
                use_cache=False,  # generate gives a decoder without encoder a cache without room for cross-attention
                min_length=min_length,
                max_length=max_length,
                eos_token_id=end,
                pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            )
        return [text.strip() for text in tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)]


def _has_cross_attention(decoder: Any) -> bool:
    """True of a model of transformers, False of any other module; ValueError for a model of transformers without it."""
    from transformers import PreTrainedModel

    if not isinstance(decoder, PreTrainedModel):
        return False
    reads = "encoder_hidden_states" in inspect.signature(decoder.forward).parameters  # others swallow it as a keyword
    if not (reads and getattr(decoder.config, "add_cross_attention", True)):
        remedy = "make its config with add_cross_attention=True" if reads else "take one that has, as BERT or GPT-2"
        raise ValueError(f"decoder is a {type(decoder).__name__} and has no cross-attention: {remedy}")
    return True


def special_ids(tokenizer: Any) -> tuple[int, int]:
    """The start and the end token: BERT-like tokenizers have them as [CLS] and [SEP]."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if start is None or end is None:
        raise ValueError("tokenizer has no start or no end token: set its bos_token and eos_token")
    return start, end


def caption_ids(
    texts: Sequence[str], tokenizer: Any, longest: int = 30
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"]]:
    """Ids and mask for `CodebookCaptioner`: [start, words …, end], cut at ``longest``, padded on the right."""
    start, end = special_ids(tokenizer)
    if longest < 3:
        raise ValueError(f"longest={longest}: must leave room for a word between start and end, at least 3")
    rows = [tokenizer(text, add_special_tokens=False).input_ids[: longest - 2] for text in texts]
    ids = torch.full((len(rows), max(map(len, rows), default=0) + 2), end)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row) + 2] = torch.tensor([start, *row, end])
        mask[i, : len(row) + 2] = 1
    return ids, mask


def save_captioner(model: CodebookCaptioner, tokenizer: Any, folder: Path) -> None:
    """Write the parts by their ``save_pretrained``, the codebook as safetensors, and last the file that names them."""
    for name in ("vision", "decoder"):
        part: Any = getattr(model, name)
        if not hasattr(part, "save_pretrained"):
            raise ValueError(f"{name} is a {type(part).__name__}: only models of transformers can be saved")
        with quiet_loading():
            part.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_atomically(folder / CODEBOOK, save({"codebook": model.codebook.detach().contiguous()}))
    classes = {name: type(getattr(model, name)).__name__ for name in ("vision", "decoder")}
    about = {**classes, "beta": model.beta, "legacy": model.legacy}
    write_atomically(folder / CONFIG, (json.dumps(about, indent=1) + "\n").encode())


def load_captioner(folder: Path) -> tuple[CodebookCaptioner, Any]:
    """What `save_captioner` wrote, in evaluation mode, and its tokenizer. Weights from safetensors only.

    Raises FileNotFoundError when the folder holds no captioner, ValueError when its parts are none of transformers.
    """
    import transformers

    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: give a folder that save_captioner wrote")
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for name in ("vision", "decoder"):
        kind = getattr(transformers, str(about.get(name)), None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise ValueError(f"{folder / CONFIG}: {name}={about.get(name)!r} is no model of transformers")
        with quiet_loading():
            parts[name] = kind.from_pretrained(folder / name, use_safetensors=True, local_files_only=True)
    codebook = load((folder / CODEBOOK).read_bytes())["codebook"]
    model = CodebookCaptioner(**parts, num_codes=len(codebook), dim=codebook.shape[1], beta=about["beta"])
    model.legacy = bool(about["legacy"])
    model.codebook.data.copy_(codebook)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
