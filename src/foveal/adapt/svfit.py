"""SVFit: fine-tune only the leading singular values of the pretrained weights; their directions stay as they are.

    W = U diag(s) Vᵀ                                   thin SVD of a weight (out, in), s descending
    r = the smallest with Σ_{i≤r} sᵢᵖ ≥ 0.99 Σᵢ sᵢᵖ     or a fixed rank
    W_e = W − U_r diag(s_r) V_rᵀ                       frozen, as U_r and V_r are
    y = x W_eᵀ + ((x V_r) ⊙ σ) U_rᵀ + b                 σ = s_r at first: nothing changes before training

A matrix of 768 × 768 costs 768 trainable numbers at full rank; LoRA with r = 8 costs 12,288, 16 times as many. The
gradient ∂L/∂σᵢ = uᵢᵀ (∂L/∂W) vᵢ is one number for a whole direction, so that σ takes learning rates of 1e-2 to 1e-1.
Weight decay must not touch it: it would pull the pretrained spectrum to zero (`foveal.train.fit` leaves vectors alone).

Memory: U_r, V_r and W_e together need up to three times the memory of W, until `merge_svfit`. `foveal.adapt.svfit_peft`
has the same as a tuner of peft.

Chengwei Sun, Jiwei Wei, Yujia Wu, et al.: SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using
Singular Values. 2024, arXiv 2409.05926.

Departures: the paper does not say which power p of the singular values is the information that r keeps; ours is 2 (the
energy), 1 is on offer. W_e is taken against the factors as they are stored, so that it makes up for their rounding in
16 bits. GPT-2's ``c_attn`` is query, key and value in one matrix, and has one SVD for all three.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FACTORS = ("sigma", "u", "vh", "residual")
SLACK = 1e-12
"""By how much the share of the energy may fall short, for round-off."""

# The split ------------------------------------------------------------------------------------------------------------


class SVDSplit(NamedTuple):
    """``weight = (u * sigma) @ vh + residual``."""

    u: Float[Tensor, "out r"]
    sigma: Float[Tensor, " r"]
    vh: Float[Tensor, "r in"]
    residual: Float[Tensor, "out in"]


def select_rank(singular_values: Float[Tensor, " n"], energy: float = 0.99, *, power: float = 2) -> int:
    """The smallest rank in [1, n] whose largest singular values hold the share ``energy`` of Σ sᵖ; in any order.

    Raises ValueError for an energy outside (0, 1], values that are not a list of finite numbers ≥ 0, or a power ≤ 0.
    """
    values = torch.as_tensor(singular_values).detach().double().cpu()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"singular_values {tuple(values.shape)} must be one list of at least one number")
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError("singular_values holds a negative number, NaN or infinity: give those of a finite matrix")
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: must be a share in (0, 1]")
    if not power > 0:
        raise ValueError(f"power={power}: must be positive; 2 counts energy, 1 the singular values themselves")
    positive = int((values > 0).sum())
    if energy == 1 or positive == 0:  # all of it: round-off must not drop small values
        return max(1, positive)
    # relative to the largest: no power of it overflows
    powers = np.sort((values / values.max()).numpy())[::-1] ** power
    share = np.cumsum(powers) / powers.sum()
    return int(np.argmax(share >= energy - SLACK)) + 1


def svd_split(weight: Float[Tensor, "out in"], rank: int) -> SVDSplit:
    """The dominant part of ``weight`` in factors, and exactly the rest; computed in float64, in the weight's dtype.

    Raises ValueError for a rank outside [1, min(out, in)] and for what is no finite matrix.
    """
    return _split(weight, *thin_svd(weight), rank)


def thin_svd(
    weight: Float[Tensor, "out in"],
) -> tuple[Float[Tensor, "out n"], Float[Tensor, " n"], Float[Tensor, "n in"]]:
    """U, s and Vᵀ in float64. ValueError for what is no finite matrix of floating-point numbers."""
    if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point() or weight.is_meta:
        raise ValueError(
            f"weight {tuple(weight.shape)} of {weight.dtype} on {weight.device} must be a matrix of floating-point "
            "numbers in memory: load the model unquantised"
        )
    wide = weight.detach().double()
    if not bool(wide.isfinite().all()):
        raise ValueError("weight holds NaN or infinity: it has no singular values")
    return torch.linalg.svd(wide, full_matrices=False)


def _check_rank(rank: int, shape: Sequence[int]) -> None:
    if not isinstance(rank, int | np.integer) or not 1 <= rank <= min(shape):
        raise ValueError(f"rank={rank!r}: must be a whole number in [1, {min(shape)}] for a weight {tuple(shape)}")


def _split(weight: Tensor, u: Tensor, s: Tensor, vh: Tensor, rank: int) -> SVDSplit:
    _check_rank(rank, weight.shape)
    u, s, vh = (part.to(weight.dtype).contiguous() for part in (u[:, :rank], s[:rank], vh[:rank]))
    residual = weight.detach().double() - (u.double() * s.double()) @ vh.double()
    return SVDSplit(u, s, vh, residual.to(weight.dtype))


# The layer ------------------------------------------------------------------------------------------------------------


class SVFitLinear(nn.Module):
    """A linear layer of which only the r singular values ``sigma`` are trained.

    A new one is zero: load its state, or make it with `from_linear`, where ``sigma`` is in float32 or better, whatever
    the weight's precision: small steps would be lost in 16 bits.
    """

    u: Tensor
    vh: Tensor
    residual: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        _check_rank(rank, (out_features, in_features))
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.was_conv1d = False
        """Was the wrapped layer transformers' Conv1D, whose weight is stored (in, out)?"""
        self.sigma = nn.Parameter(torch.zeros(rank))
        self.register_buffer("u", torch.zeros(out_features, rank))
        self.register_buffer("vh", torch.zeros(rank, in_features))
        self.register_buffer("residual", torch.zeros(out_features, in_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, *, rank: int | None = None, energy: float = 0.99, power: float = 2
    ) -> "SVFitLinear":
        """The same map with its weight split; a ``rank`` replaces the choice by ``energy`` and ``power``.

        Raises ValueError for other layers than nn.Linear and transformers' Conv1D, and as `svd_split`.
        """
        if not isinstance(linear, nn.Linear | Conv1D):
            raise ValueError(f"linear is a {type(linear).__name__}: must be nn.Linear or transformers' Conv1D")
        was_conv1d = isinstance(linear, Conv1D)
        weight = linear.weight.mT if was_conv1d else linear.weight
        u, s, vh = thin_svd(weight)
        split = _split(weight, u, s, vh, select_rank(s, energy, power=power) if rank is None else rank)
        out_features, in_features = weight.shape
        with torch.device("meta"):  # nothing is allocated twice
            layer = cls(in_features, out_features, len(split.sigma), linear.bias is not None)
        layer.was_conv1d = was_conv1d
        layer.sigma = nn.Parameter(split.sigma.to(torch.promote_types(weight.dtype, torch.float32)))
        layer.u, layer.vh, layer.residual = split.u, split.vh, split.residual
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer.train(linear.training)

    def forward(self, x: Float[Tensor, "*b in"]) -> Float[Tensor, "*b out"]:
        scaled = (F.linear(x, self.vh) * self.sigma).to(self.u.dtype)
        return F.linear(x, self.residual, self.bias) + F.linear(scaled, self.u)

    def merged_weight(self) -> Float[Tensor, "out in"]:
        """W_e + U_r diag(σ) V_rᵀ, differentiable; summed in float32 or better."""
        wide = torch.promote_types(self.u.dtype, torch.float32)
        dominant = (self.u.to(wide) * self.sigma.to(wide)) @ self.vh.to(wide)
        return (self.residual.to(wide) + dominant).to(self.residual.dtype)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """`merged_weight`, for models that read the weight of their layers."""
        return self.merged_weight()

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain layer with the weight of now: nothing is left to pay at inference."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        linear.weight = nn.Parameter(self.merged_weight())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


# Whole models ---------------------------------------------------------------------------------------------------------


def apply_svfit(
    model: nn.Module,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    *,
    rank: int | None = None,
    energy: float = 0.99,
    power: float = 2,
    modules_to_train: Sequence[str] = (),
) -> list[str]:
    """Replace layers in place by `SVFitLinear`, freeze all else, and return the names of the replaced layers.

    Args:
        target_modules: last components of the names of nn.Linear and Conv1D layers: query and value projections.
        rank: of every layer, at most min(out, in) of each; None chooses by ``energy`` and ``power``.
        modules_to_train: names (whole, or parts between dots) of modules or parameters that stay trainable.

    Raises ValueError when a name matches nothing, for a layer that shares its weight with another, and as
    `select_rank`; the model is then as it was.
    """
    for argument, names in (("target_modules", target_modules), ("modules_to_train", modules_to_train)):
        if isinstance(names, str):
            raise ValueError(f"{argument}={names!r}: must be a list of names, such as [{names!r}]")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1")
    targets = _targets(model, target_modules)
    to_train = [_named(model, name) for name in modules_to_train]
    made: dict[nn.Module, SVFitLinear] = {}
    for _, linear in targets:
        if linear not in made:
            smallest = min(linear.weight.shape)
            own = None if rank is None else min(rank, smallest)
            made[linear] = SVFitLinear.from_linear(linear, rank=own, energy=energy, power=power)
    for name, linear in targets:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[linear])
    model.requires_grad_(False)
    layers = svfit_layers(model)
    for layer in layers.values():  # those of an earlier call with it
        layer.sigma.requires_grad_(True)
    for parameter in {parameter for group in to_train for parameter in group}:
        parameter.requires_grad_(True)
    return [name for name, layer in layers.items() if layer in made.values()]


def _targets(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Linear | Conv1D]]:
    """Every place of a layer to be replaced: one layer may have several."""
    every = [(name, module) for name, module in model.named_modules(remove_duplicate=False)]
    named = [(name, module) for name, module in every if name.rpartition(".")[2] in names and name]
    found = [(name, module) for name, module in named if isinstance(module, nn.Linear | Conv1D)]
    if not found:
        if any(isinstance(module, SVFitLinear) for _, module in named):
            raise ValueError(f"target_modules={names!r} are SVFit layers already: merge_svfit(model) first")
        there = sorted({n.rpartition(".")[2] for n, module in every if isinstance(module, nn.Linear | Conv1D)})
        raise ValueError(
            f"target_modules={names!r} names no linear layer of this {type(model).__name__}; "
            f"it has {', '.join(there) or 'none'}"
        )
    for name, linear in found:
        others = [(n, module) for n, module in every if module is not linear]
        sharing = [n for n, module in others if getattr(module, "weight", None) is linear.weight]
        if sharing:
            raise ValueError(f"target_modules={names!r}: {name} shares its weight with {sharing[0]}; untie them first")
    return found


def _named(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters in whose names ``name`` occurs, from dot to dot."""
    found = [parameter for full, parameter in model.named_parameters() if f".{name}." in f".{full}."]
    if not found:
        raise ValueError(f"modules_to_train has {name!r}, which is in the name of no parameter of this model")
    return found


def svfit_layers(model: nn.Module) -> dict[str, SVFitLinear]:
    """The SVFit layers of a model by their qualified names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SVFitLinear)}


def merge_svfit(model: nn.Module) -> nn.Module:
    """The model itself with plain layers again (Conv1D where there was one): it saves as any checkpoint of its class.

    Raises ValueError when it has no SVFit layer.
    """
    places = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, SVFitLinear)]
    if not places:
        raise ValueError(f"model {type(model).__name__} has no SVFit layer: call apply_svfit first")
    if isinstance(model, SVFitLinear):
        return _plain(model)
    merged = {layer: _plain(layer) for _, layer in places}
    for name, layer in places:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, merged[layer])
    return model


def _plain(layer: SVFitLinear) -> nn.Linear | Conv1D:
    linear = layer.merge()
    if not layer.was_conv1d:
        return linear
    with torch.device("meta"):
        conv = Conv1D(layer.out_features, layer.in_features)
    conv.weight, conv.bias = nn.Parameter(linear.weight.detach().mT.contiguous()), linear.bias
    return conv.train(layer.training)


# What is saved --------------------------------------------------------------------------------------------------------


def svfit_state_dict(model: nn.Module, *, deterministic_factors: bool = False) -> dict[str, Tensor]:
    """``name.sigma`` of every SVFit layer: all there is to save, since the SVD of the same weights gives the rest.

    Equal singular values leave their directions open: ``deterministic_factors`` adds ``u``, ``vh`` and ``residual``.
    """
    names = FACTORS if deterministic_factors else FACTORS[:1]
    return {name: tensor.clone() for name, tensor in _stored(model, names).items()}


def _stored(model: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    layers = svfit_layers(model).items()
    return {f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers for part in parts}


@torch.no_grad()
def load_svfit_state_dict(model: nn.Module, sd: Mapping[str, Tensor]) -> None:
    """Into a model on which `apply_svfit` was called with the same targets and ranks.

    Raises ValueError for names or shapes that do not fit and for non-finite values; the model is then as it was.
    """
    own = _stored(model, FACTORS)
    missing = sorted(_stored(model, FACTORS[:1]).keys() - sd.keys())
    unknown = sorted(sd.keys() - own.keys())
    if missing or unknown or not own:
        what = (
            f"lacks {missing[0]}" if missing else f"has an unknown {unknown[0]}" if unknown else "and model are empty"
        )
        raise ValueError(f"sd {what}: call apply_svfit with the targets that it was saved from")
    for name, value in sd.items():
        if value.shape != own[name].shape or not bool(value.isfinite().all()):
            expected = tuple(own[name].shape)
            raise ValueError(f"sd[{name!r}] {tuple(value.shape)} must be finite numbers of shape {expected}")
    for name, value in sd.items():
        own[name].copy_(value)


def parameter_budget(out_features: int, in_features: int, *, svfit_rank: int, lora_rank: int) -> dict[str, int]:
    """Trainable numbers of one matrix with either method."""
    sizes = {"out_features": out_features, "in_features": in_features, "svfit_rank": svfit_rank, "lora_rank": lora_rank}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if svfit_rank > min(out_features, in_features):
        raise ValueError(f"svfit_rank={svfit_rank}: must be at most {min(out_features, in_features)}")
    return {"svfit": svfit_rank, "lora": lora_rank * (out_features + in_features)}
