"""M3I's bound on mutual information: two families of likelihood, their entropy terms, and mixing of two inputs.

    I(z_x; z_y)  ≥  H(z_y) + E log P(z_y | ẑ_y)
    Boltzmann    log P = cos(ẑ, z_y)/τ − log Σ_{z in bank} exp(cos(ẑ, z)/τ)         H: log B, with a bank of B
    Gaussian     log P = −‖z_y − ẑ‖²/2σ² − D/2 · log(2πσ²)                          H: ½ log det(2πe (Σ + εI))

All logarithms are natural. See `foveal.pretrain.m3i`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import at_least_float32, finite_loss, full_precision


@dataclass(frozen=True)
class SpecialCase:
    """A known method as one choice of the four. ``family``: "boltzmann" or "gaussian"."""

    inputs: str
    target: str
    family: str
    anti_collapse: str


SPECIAL_CASES = {
    "supervised": SpecialCase("view", "category embedding", "boltzmann", "class bank"),
    "clip": SpecialCase("view", "text vector", "boltzmann", "negatives"),
    "simclr": SpecialCase("view", "other view", "boltzmann", "negatives"),
    "moco": SpecialCase("view", "other view", "boltzmann", "momentum and negatives"),
    "byol": SpecialCase("view", "other view", "gaussian", "momentum"),
    "simsiam": SpecialCase("view", "other view", "gaussian", "stop-gradient"),
    "mae": SpecialCase("masked view", "pixels", "gaussian", "fixed target"),
    "beit": SpecialCase("masked view", "token ids", "boltzmann", "fixed codebook"),
    "data2vec": SpecialCase("masked view", "dense features", "gaussian", "momentum"),
}

# Likelihoods ----------------------------------------------------------------------------------------------------------


def boltzmann_log_likelihood(
    pred: Float[Tensor, "b d"],
    target: Float[Tensor, "k d"],
    temperature: float | Tensor = 0.07,
    index: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """log P of the bank's row ``index[i]`` given ``pred[i]``; both sides are normalised here and get gradients.

    ``index`` None: row i for prediction i, so K must be B. Raises ValueError for shapes that do not fit, indices
    outside the bank, a temperature that is not positive, and NaN or infinity.
    """
    value = unchecked_boltzmann(pred, target, temperature, index)
    finite_loss(value.detach().sum(), pred=pred, target=target)
    return value


def unchecked_boltzmann(
    pred: Float[Tensor, "b d"],
    target: Float[Tensor, "k d"],
    temperature: float | Tensor,
    index: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """`boltzmann_log_likelihood`, but NaN of what is not finite: objectives report it once all processes know."""
    if pred.ndim != 2 or target.ndim != 2 or pred.shape[1] != target.shape[1] or 0 in (*pred.shape, *target.shape):
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must be (B, D) and (K, D)")
    value = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
    if not 0 < value < math.inf:
        raise ValueError(f"temperature={value}: must be positive and finite")
    if index is None:
        if len(pred) != len(target):
            raise ValueError(f"index=None needs as many targets as predictions, not {len(target)} and {len(pred)}")
        index = torch.arange(len(pred), device=pred.device)
    if index.shape != pred.shape[:1]:
        raise ValueError(f"index {tuple(index.shape)} must be ({len(pred)},), one for each prediction")
    if not bool(((index >= 0) & (index < len(target))).all()):
        raise ValueError(f"index must be in [0, {len(target)}), the rows of target")
    with full_precision(pred):
        scores = unit_rows(pred) @ unit_rows(target).mT / temperature
    return scores.log_softmax(1).gather(1, index[:, None])[:, 0]


def gaussian_log_likelihood(
    pred: Float[Tensor, "b *n d"],
    target: Float[Tensor, "b *n d"],
    sigma: float = 1.0,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """log P of the target, summed over D with the normalising constant.

    Of tokens (B, N, D) it is the mean over those where ``mask`` is True (None: all), 0 if there are none; what the
    others hold never matters. Raises ValueError for shapes that do not fit and a sigma that is not positive.
    """
    if pred.shape != target.shape or pred.ndim not in (2, 3):
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must be (B, D) or (B, N, D) alike")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma}: must be positive and finite")
    if mask is not None and (pred.ndim != 3 or mask.shape != pred.shape[:2]):
        raise ValueError(f"mask {tuple(mask.shape)} must be (B, N), for pred (B, N, D), not {tuple(pred.shape)}")
    error = at_least_float32(pred) - at_least_float32(target)
    if mask is not None:
        error = error.masked_fill(~mask.bool()[..., None], 0)
    constant = pred.shape[-1] / 2 * math.log(2 * math.pi * sigma**2)
    value = -error.square().sum(-1) / (2 * sigma**2) - constant
    if pred.ndim == 2:
        return value
    weight = value.new_ones(value.shape) if mask is None else mask.to(value.dtype)
    return (value * weight).sum(1) / weight.sum(1).clamp_min(1)


def gaussian_entropy(z: Float[Tensor, "b d"], eps: float = 1e-4) -> Float[Tensor, ""]:
    """Entropy in nats of a Gaussian with the biased covariance of ``z`` plus ``eps`` · I, with gradient.

    Computed in float64: where B ≤ D, ``eps`` alone gives the covariance its volume, and float32 rounds it away.
    Raises ValueError for another shape, a negative ``eps``, NaN or infinity, and an entropy of −∞.
    """
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"z {tuple(z.shape)} must be (B, D)")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps={eps}: must be at least 0 and finite")
    if not bool(z.isfinite().all()):
        raise ValueError("z holds NaN or infinity")
    rows, width = z.shape
    with full_precision(z):
        centred = z.double() - z.double().mean(0)
        covariance = centred.mT @ centred / rows + eps * torch.eye(width, dtype=torch.float64, device=z.device)
        entropy = (width * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(covariance).logabsdet) / 2
    if not bool(entropy.isfinite()) or (eps == 0 and rows <= width):  # rounding would give a flat cloud some volume
        raise ValueError(f"eps={eps}: the entropy of z {tuple(z.shape)} is not finite, give a positive eps")
    return entropy.to(torch.promote_types(z.dtype, torch.float32))


def mutual_information(
    pred: Float[Tensor, "b d"],
    target: Float[Tensor, "b d"],
    family: str = "boltzmann",
    temperature: float = 0.07,
    sigma: float = 1.0,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """The lower bound in nats; with the Boltzmann family it is at most log B. ``family``: boltzmann or gaussian."""
    if family == "boltzmann":
        return math.log(max(len(pred), 1)) + boltzmann_log_likelihood(pred, target, temperature).mean()
    if family == "gaussian":
        return gaussian_entropy(target, eps) + gaussian_log_likelihood(pred, target, sigma).mean()
    raise ValueError(f"family={family!r} is unknown: choose boltzmann or gaussian")


def joint_objective(
    terms: Mapping[str, Float[Tensor, " b"]],
    weights: Mapping[str, float],
    valid: Mapping[str, Bool[Tensor, " b"]] | None = None,
) -> Float[Tensor, ""]:
    """−Σ_k λ_k · mean over the valid samples of term k, a term without any adding 0.

    Args:
        terms: log-likelihoods of each sample, by name.
        weights: λ, by the same names.
        valid: which samples count, for some or all of the names.

    Raises ValueError where the names differ, and for a valid sample that is NaN or infinite.
    """
    if terms.keys() != weights.keys():
        raise ValueError(f"weights has {sorted(weights)}: must have the names of terms, {sorted(terms)}")
    valid = valid or {}
    if not valid.keys() <= terms.keys():
        raise ValueError(f"valid has {sorted(valid)}: must have names of terms, {sorted(terms)}")
    if not terms:
        raise ValueError("terms is empty: give at least one")
    means = {name: mean_where(value, valid.get(name)) for name, value in terms.items()}
    return finite_loss(weighted_sum(means, weights), **{f"terms[{name!r}]": mean for name, mean in means.items()})


def weighted_sum(means: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The objective of the means of its terms."""
    return -torch.stack([weights[name] * mean for name, mean in means.items()]).sum()


def mean_where(values: Float[Tensor, " b"], valid: Bool[Tensor, " b"] | None) -> Float[Tensor, ""]:
    """Mean over the valid samples, 0 if there are none; what the others hold never matters."""
    if valid is None:
        return values.mean() if values.numel() else values.sum()
    if valid.shape != values.shape:
        raise ValueError(f"valid {tuple(valid.shape)} must be like its term, {tuple(values.shape)}")
    return values.masked_fill(~valid.bool(), 0).sum() / valid.sum().clamp_min(1)


# Mixing ---------------------------------------------------------------------------------------------------------------


def random_mix_mask(
    batch: int, num_tokens: int, ratio: float, generator: torch.Generator | None
) -> Bool[Tensor, "b n"]:
    """Exactly round(ratio · N) tokens True in every row, on the generator's device; None is torch's own generator."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}: must be in [0, 1]")
    if batch < 0 or num_tokens < 1:
        raise ValueError(f"batch={batch}, num_tokens={num_tokens}: must be at least 0 and 1")
    device = None if generator is None else generator.device
    order = torch.rand(batch, num_tokens, generator=generator, device=device).argsort(1)
    return order < round(ratio * num_tokens)


def mix_tokens(
    a: Float[Tensor, "b n d"], b: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n d"]:
    """Tokens of ``a`` where the mask is True, of ``b`` elsewhere."""
    if a.ndim != 3 or a.shape != b.shape or mask.shape != a.shape[:2]:
        shapes = f"a {tuple(a.shape)}, b {tuple(b.shape)}, mask {tuple(mask.shape)}"
        raise ValueError(f"{shapes}: must be (B, N, D) alike and (B, N)")
    return torch.where(mask.bool()[..., None], a, b)


def unmix_tokens(
    x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], mask_token: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """``x`` apart again: every token in its own place of a or b, ``mask_token`` in the place left empty."""
    if x.ndim != 3 or mask.shape != x.shape[:2] or mask_token.shape != x.shape[2:]:
        shapes = f"x {tuple(x.shape)}, mask {tuple(mask.shape)}, mask_token {tuple(mask_token.shape)}"
        raise ValueError(f"{shapes}: must be (B, N, D), (B, N) and (D,)")
    empty, from_a = mask_token.to(x.dtype), mask.bool()[..., None]
    return torch.where(from_a, x, empty), torch.where(from_a, empty, x)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """θ̄ ← mθ̄ + (1 − m)θ in place, buffers copied. ValueError for modules of different make, m outside [0, 1]."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum}: must be in [0, 1]")
    for kind in ("parameters", "buffers"):
        theirs, ours = (dict(getattr(module, f"named_{kind}")()) for module in (online, target))
        shapes = [{name: value.shape for name, value in side.items()} for side in (theirs, ours)]
        if shapes[0] != shapes[1]:
            odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
            raise ValueError(f"target and online differ in {kind} {odd!r}: target must be a copy of online")
        for name, value in ours.items():
            if kind == "parameters":
                value.lerp_(theirs[name].to(value.dtype), 1 - momentum)
            else:
                value.copy_(theirs[name])


def layer_normed(features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Dense targets: each token with mean 0 and variance 1, in float32 or better."""
    features = at_least_float32(features)
    return F.layer_norm(features, features.shape[-1:])
