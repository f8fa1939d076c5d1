"""What VladVA trains: a soft prompt, and low-rank corrections (LoRA) of linear layers that stay as they are.

    y = W x + b + (α/r) · B A x        A (r, in) drawn at random, B (out, r) zero: at first nothing changes

Edward J. Hu, Yelong Shen, Phillip Wallis, et al.: LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022,
arXiv 2106.09685.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class SoftPrompt(nn.Module):
    """``tokens`` (n, D): vectors in the place of a prompt's token embeddings, learned freely.

    Kept in float32 or better, whatever the model's precision: small steps would be lost in 16 bits.
    """

    def __init__(self, init: Float[Tensor, "n d"]) -> None:
        super().__init__()
        if init.ndim != 2 or 0 in init.shape or not init.is_floating_point():
            raise ValueError(f"init {tuple(init.shape)} of {init.dtype} must be (n, D) numbers with n ≥ 1")
        precise = torch.promote_types(init.dtype, torch.float32)
        self.tokens = nn.Parameter(init.detach().to(precise, copy=True))

    @classmethod
    def from_token_ids(cls, embedding: nn.Module, ids: Sequence[int] | Int[Tensor, " n"]) -> "SoftPrompt":
        """Starts at the embeddings of a written prompt, as a copy: the table and the prompt do not change each other.

        Raises ValueError for no ids and for ids outside the table.
        """
        table: Any = embedding.weight
        wanted = torch.as_tensor(ids, dtype=torch.long).flatten()
        if not len(wanted) or not 0 <= int(wanted.min()) <= int(wanted.max()) < len(table):
            raise ValueError(f"ids={wanted.tolist()} must be token ids within 0..{len(table) - 1}, at least one")
        with torch.no_grad():
            return cls(embedding(wanted.to(table.device)))

    def forward(self, batch: int) -> Float[Tensor, "b n d"]:
        """The prompt for each of ``batch`` rows."""
        return self.tokens.expand(batch, -1, -1)


class LoRALinear(nn.Module):
    """``base`` frozen, with a trained correction of rank ``rank`` beside it; a new one changes nothing.

    ``enabled`` switches the correction off and on. Factors are kept in float32 or better.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 16,
        alpha: float = 16.0,
        dropout: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise ValueError(f"base={type(base).__name__}: must be a torch.nn.Linear")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank={rank!r}: must be a whole number ≥ 1")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha}: must be finite")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.enabled = rank, alpha, True
        like: dict[str, Any] = {"dtype": torch.promote_types(base.weight.dtype, torch.float32)}
        like["device"] = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b in"]) -> Float[Tensor, "*b out"]:
        """The base layer's output and, when enabled, (α/r) · B A x."""
        out = self.base(x)
        if not self.enabled:
            return out
        down = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)
        return out + (self.alpha / self.rank * F.linear(down, self.lora_B)).to(out.dtype)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """That of a plain layer which computes the same (without dropout), for models that read weights themselves."""
        return self._merged_weight() if self.enabled else self.base.weight

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The base layer's."""
        return self.base.bias

    def _merged_weight(self) -> Float[Tensor, "out in"]:
        change = self.alpha / self.rank * self.lora_B @ self.lora_A
        return (self.base.weight.to(self.lora_A.dtype) + change).to(self.base.weight.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """One plain layer that computes the same; the base stays as it is."""
        merged = copy.deepcopy(self.base)
        merged.weight.copy_(self._merged_weight())
        return merged

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}"


def add_lora(
    model: nn.Module,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.0,
    exclude: Sequence[str] = ("lm_head",),
    *,
    generator: torch.Generator | None = None,
) -> int:
    """Freeze the model and put a `LoRALinear` in the place of its linear layers, in place; returns how many.

    Subclasses of ``nn.Linear`` (quantised layers, the output of ``nn.MultiheadAttention``) stay as they are.

    Args:
        model: with linear layers somewhere inside; seven in each block of Llama.
        rank, alpha, dropout: of every correction.
        exclude: attribute names that are left alone.
        generator: draws the factors A; the global one if none is given.

    Raises ValueError for bad numbers, a bare ``nn.Linear``, and a model that has such layers already.
    """
    if isinstance(model, nn.Linear):
        raise ValueError("model is a single nn.Linear, which cannot be replaced inside itself: use LoRALinear(model)")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("model has LoRA layers already: merge_lora or remove_lora them first")
    pretrained = list(model.parameters())

    def adapted(child: nn.Module) -> nn.Module | None:
        return LoRALinear(child, rank, alpha, dropout, generator=generator) if type(child) is nn.Linear else None

    replaced = _replace(model, adapted, exclude)
    for parameter in pretrained:
        parameter.requires_grad_(False)
    return replaced


def merge_lora(model: nn.Module) -> int:
    """Every `LoRALinear` becomes the plain layer that computes the same, in place; returns how many there were."""
    return _replace(model, lambda child: child.merge() if isinstance(child, LoRALinear) else None)


def remove_lora(model: nn.Module) -> int:
    """Every `LoRALinear` becomes its base again, in place; returns how many there were."""
    return _replace(model, lambda child: child.base if isinstance(child, LoRALinear) else None)


@contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before `add_lora`."""
    layers = [(module, module.enabled) for module in model.modules() if isinstance(module, LoRALinear)]
    try:
        for layer, _ in layers:
            layer.enabled = False
        yield
    finally:
        for layer, before in layers:
            layer.enabled = before


def _replace(model: nn.Module, substitute: Callable[[nn.Module], nn.Module | None], exclude: Sequence[str] = ()) -> int:
    """Children for which ``substitute`` gives something; a layer that stands in two places stays one layer."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, LoRALinear)
        for name, child in parent._modules.items()  # `named_children` leaves out the second place of a layer
        if child is not None and name not in exclude
    ]
    made: dict[int, nn.Module] = {}
    for parent, name, child in places:
        if id(child) not in made:
            new = substitute(child)
            if new is None:
                continue
            made[id(child)] = new.train(child.training)
        setattr(parent, name, made[id(child)])
    return len(made)
