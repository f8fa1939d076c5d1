"""What every decoder promises. A new one adds one `Case` to `CASES`; `test_contract.py` runs them all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from foveal.decode.agla import AglaLogitsProcessor
from foveal.decode.base import ContrastProcessor
from foveal.decode.damro import DamroLogitsProcessor
from foveal.decode.debias import DebiasLogitsProcessor

from .tiny import CONFIGS, IMAGE

Inputs = dict[str, Tensor]
EVERY = tuple(CONFIGS)
TOP_K = 3


@dataclass(frozen=True)
class Case:
    """One decoder under test."""

    name: str
    build: Callable[..., ContrastProcessor]
    """(model, inputs of generate, **settings) -> the processor."""
    branches: Callable[[Any, Inputs], list[Inputs]]
    """(model, inputs of one prompt) -> what each branch reads instead, worked out slowly."""
    weights: tuple[float, float]
    """Of the scores and of the mean of the branches, with the default settings."""
    beta: float
    kinds: tuple[str, ...] = EVERY
    """Models of `tiny` that it works on; on the others it must say so."""
    passes: Callable[[int], int] = lambda steps: steps
    """Extra forward passes of a generation of so many tokens."""
    rewrites: bool = True
    """Does it lay out prompts of its own, whatever the padding of those given?"""
    bad: tuple[tuple[dict[str, Any], str], ...] = field(default=())
    """Settings that must be refused, and a piece of what is said."""

    def combine(self, scores: Tensor, *others: Tensor) -> Tensor:
        """The equation of the paper, row by row."""
        rows = []
        for row, said in enumerate(scores.double()):
            other = sum(branch[row].double() for branch in others) / len(others)
            mixed = self.weights[0] * said + self.weights[1] * other
            mixed[said.exp() < self.beta * said.max().exp()] = -torch.inf
            rows.append(mixed)
        return torch.stack(rows).to(scores)


class Slow(LogitsProcessor):
    """The same decoder without cache, batch or padding: each row is read anew at every step, alone."""

    def __init__(self, case: Case, model: Any, prompts: list[Inputs], length: int) -> None:
        self.case, self.model, self.length = case, model, length
        self.branches = [case.branches(model, prompt) for prompt in prompts]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        times = len(input_ids) // len(self.branches)
        rows = []
        for row, ids in enumerate(input_ids):
            branches = self.branches[row // times]
            rows.append([continued(self.model, branch, ids[None, self.length :]) for branch in branches])
        return self.case.combine(scores, *(torch.cat(branch) for branch in zip(*rows, strict=True)))


def continued(model: Any, branch: Inputs, said: Tensor) -> Tensor:
    """Logits after a whole prompt and the tokens said, in one plain pass."""
    branch = dict(branch)
    if "inputs_embeds" in branch:
        branch["inputs_embeds"] = torch.cat([branch["inputs_embeds"], model.get_input_embeddings()(said)], 1)
    else:
        branch["input_ids"] = torch.cat([branch["input_ids"], said], 1)
    branch.pop("attention_mask", None)  # one prompt has no padding
    if "mm_token_type_ids" in branch:
        branch["mm_token_type_ids"] = torch.nn.functional.pad(branch["mm_token_type_ids"], (0, said.shape[1]))
    deltas, base = getattr(model.model, "rope_deltas", None), model.model
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = None  # of generate's prompts; older releases would add them to the positions of this one
    logits = model(**branch).logits[:, -1].float()
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = deltas
    return logits


def image_free(model: Any, inputs: Inputs) -> list[Inputs]:
    """Of one prompt: its text alone, and its text with a 0 for each row of image tokens."""
    ids = inputs["input_ids"][0].tolist()
    marked = [token for before, token in zip([None, *ids], ids, strict=False) if not before == token == IMAGE]
    text = [token for token in ids if token != IMAGE]
    return [{"input_ids": torch.tensor([row])} for row in (text, [0 if t == IMAGE else t for t in marked])]


def _debias(model: Any, inputs: Inputs, **settings: Any) -> DebiasLogitsProcessor:
    return DebiasLogitsProcessor(model, inputs["input_ids"], inputs.get("attention_mask"), **settings)


def _damro(model: Any, inputs: Inputs, **settings: Any) -> DamroLogitsProcessor:
    names = ("input_ids", "pixel_values", "attention_mask", "image_sizes")
    given = {name: inputs[name] for name in names if name in inputs}
    return DamroLogitsProcessor(model, **given, **{"top_k": TOP_K, **settings})


@torch.no_grad()
def outliers_only(model: Any, inputs: Inputs) -> list[Inputs]:
    """Of one prompt: each picture's image tokens replaced by those of the patches that CLS attends to most."""
    kind = model.config.model_type
    base, tower = model.model, tower_of(model)
    pixels = inputs["pixel_values"]
    tiles = [pixels[i : i + 1] for i in range(len(pixels))] if pixels.ndim == 4 else list(pixels)
    parts, ids, pictures = [], inputs["input_ids"][0].tolist(), iter(tiles)
    lengths = iter([])
    if kind == "llava_next":
        features = base.get_image_features(pixels, inputs["image_sizes"], return_dict=True).pooler_output
        lengths = iter([len(feature) for feature in features])
    embedding, start = model.get_input_embeddings(), 0
    while start < len(ids):
        if ids[start] != IMAGE:
            parts.append(embedding(torch.tensor([ids[start]])))
            start += 1
            continue
        hidden = _hidden_states(tower, next(pictures)[:1])
        if kind == "internvl":
            tokens, order, length = _joined_patches(base, tower, hidden), _joined_attention(tower, hidden), 4
        else:
            block = tower.encoder.layers[-2]
            q, k = _projected(block.self_attn, block.layer_norm1(hidden[-3]))
            order = ((q[0] @ k.T) * len(q[0]) ** -0.5).softmax(-1)[1:].argsort(descending=True)
            tokens = base.multi_modal_projector(hidden[-2][0, 1:])
            length = next(lengths, 16)
        parts.append(tokens[order[:TOP_K]])
        if kind == "llava_next":
            parts.append(base.image_newline[None])
        start += length
    return [{"inputs_embeds": torch.cat(parts)[None]}]


def half_dark(inputs: Inputs) -> Inputs:
    """A view of the same pictures."""
    return {**inputs, "pixel_values": inputs["pixel_values"].clamp(max=0)}


def _agla(model: Any, inputs: Inputs, **settings: Any) -> AglaLogitsProcessor:
    return AglaLogitsProcessor(model, **half_dark(inputs), **settings)


def tower_of(model: Any) -> Any:
    """The vision encoder, which older releases keep one level deeper."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def _hidden_states(tower: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    return tower(pixels.to(tower.dtype), output_hidden_states=True, return_dict=True).hidden_states


def _projected(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return attention.q_proj(x)[0], attention.k_proj(x)[0]


def _joined_attention(tower: Any, hidden: tuple[Tensor, ...]) -> Tensor:
    block = tower.encoder.layer[-1]
    q, k = _projected(block.attention, block.layernorm_before(hidden[-2]))
    attended = ((q[0] @ k.T) * len(q[0]) ** -0.5).softmax(-1)[1:].view(4, 4)
    blocks = [attended[y : y + 2, x : x + 2].sum() for y in (0, 2) for x in (0, 2)]
    return torch.stack(blocks).argsort(descending=True)


def _joined_patches(base: Any, tower: Any, hidden: tuple[Tensor, ...]) -> Tensor:
    last = hidden[-1][:, 1:].unflatten(1, (4, 4))
    return base.multi_modal_projector(base.pixel_shuffle(last, 0.5).flatten(1, 2))[0]


CASES = [
    Case(
        "debias",
        _debias,
        image_free,
        weights=(2.0, -1.0),
        beta=0.1,
        bad=(({"mode": "blank"}, "mode='blank'"),),
    ),
    Case(
        "damro",
        _damro,
        outliers_only,
        weights=(3.0, -2.0),
        beta=0.1,
        kinds=("llava", "llava-next", "internvl"),
        bad=(({"heads": "max"}, "heads='max'"), ({"top_k": 0}, "k=0"), ({"top_k": 17}, "k=17")),
    ),
    Case(
        "agla",
        _agla,
        lambda model, inputs: [half_dark(inputs)],
        weights=(1.0, 2.0),
        beta=0.5,
        rewrites=False,
    ),
]
