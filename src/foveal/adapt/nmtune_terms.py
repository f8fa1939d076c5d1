"""NMTune's MLP and the terms that it is trained under; `foveal.adapt.nmtune` says what they are for."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows

WEIGHTS = (1.0, 0.04, 0.001)
"""Of consistency, covariance and dominant singular values, as released."""
_SHAPES = "features {} must have the shape of mlp_features {}"


def check_rows(rows: Float[Tensor, "n d"], name: str, least: int = 2) -> None:
    """ValueError unless there are at least ``least`` rows of finite numbers."""
    if rows.ndim != 2 or len(rows) < least or rows.shape[1] == 0:
        raise ValueError(f"{name} {tuple(rows.shape)} must be (rows, dimensions) with at least {least} row(s)")
    if not bool(rows.detach().isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: check the encoder's output")


def _wide(values: Tensor) -> Tensor:
    """In float32 or better: 16 bits are too few for sums of squares, and the SVD does not know them."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def consistency_loss(features: Float[Tensor, "n d"], mlp_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared difference of the unit vectors; no gradient reaches ``features``. 0 when z = c·f with c > 0."""
    check_rows(mlp_features, "mlp_features")
    if features.shape != mlp_features.shape:
        raise ValueError(_SHAPES.format(tuple(features.shape), tuple(mlp_features.shape)))
    check_rows(features, "features")
    return F.mse_loss(unit_rows(mlp_features), unit_rows(features.detach()))


def covariance_loss(mlp_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Squared covariances between different dimensions, unbiased, summed and divided by D."""
    check_rows(mlp_features, "mlp_features")
    centred = _wide(mlp_features)
    centred = centred - centred.mean(0)
    with torch.autocast(centred.device.type, enabled=False):
        covariance = centred.mT @ centred / (len(mlp_features) - 1)
    others = covariance - covariance.diagonal().diag()  # before it is summed: the variances can be far larger
    return others.square().sum() / mlp_features.shape[1]


def dominant_singular_value_loss(mlp_features: Float[Tensor, "n d"], *, k: int = 1) -> Float[Tensor, ""]:
    """Minus the share of the k largest singular values, divided by k, of the batch as it is (not centred).

    In [−1, 0). Raises ValueError also where all are zero.
    """
    check_rows(mlp_features, "mlp_features")
    if not 1 <= k <= min(mlp_features.shape):
        shape = tuple(mlp_features.shape)
        raise ValueError(f"k={k}: must lie in [1, {min(shape)}] for mlp_features {shape}")
    spectrum = torch.linalg.svdvals(_wide(mlp_features))
    if not bool(spectrum[0] > 0):
        raise ValueError("mlp_features are all zero: no direction has a share of them")
    return -spectrum[:k].sum() / (k * spectrum.sum())


class NMTuneOutput(NamedTuple):
    """The total, and its parts without their weights."""

    loss: Float[Tensor, ""]
    ce: Float[Tensor, ""]
    consistency: Float[Tensor, ""]
    covariance: Float[Tensor, ""]
    singular: Float[Tensor, ""]


def nmtune_loss(
    logits: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    features: Float[Tensor, "n d"],
    mlp_features: Float[Tensor, "n d"],
    *,
    weights: Sequence[float] = WEIGHTS,
    k: int = 1,
    consistency_target: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]] | None = None,
) -> NMTuneOutput:
    """Cross-entropy and the three weighted terms of a batch, in float32 or better.

    Args:
        features: of the frozen encoder; no gradient reaches them.
        weights: of consistency, covariance and dominant singular values; a term of weight 0 is still computed.
        k: leading singular values.
        consistency_target: (features of view 1, mlp_features of view 2) for the first term, where the rows of the batch
            are two views one after the other.

    Raises ValueError for shapes that do not fit, labels that are no whole numbers, fewer than 2 rows, features that are
    not finite or mlp_features that are all zero, and a k outside [1, min(N, D)].
    """
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights={tuple(weights)}: must be three finite numbers ≥ 0")
    fits = logits.ndim == 2 and labels.shape == logits.shape[:1] and len(logits) == len(mlp_features)
    if not fits or labels.is_floating_point():
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {labels.dtype} {tuple(labels.shape)} must have one row and one "
            f"whole number for each of mlp_features {tuple(mlp_features.shape)}"
        )
    ce = F.cross_entropy(_wide(logits), labels.long())
    consistency = consistency_loss(*(consistency_target or (features, mlp_features)))
    if features.shape != mlp_features.shape:
        raise ValueError(_SHAPES.format(tuple(features.shape), tuple(mlp_features.shape)))
    terms = (consistency, covariance_loss(mlp_features), dominant_singular_value_loss(mlp_features, k=k))
    total = ce + sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return NMTuneOutput(total, ce, *terms)


class NMTuneMLP(nn.Module):
    """z = scale · MLP(f) + f, or without the residual MLP(f); ``layers`` hidden layers of width ⌊ratio · D⌋.

    Batch norm makes training depend on the batch, which needs two rows or more; in evaluation mode it does not.
    """

    def __init__(
        self, dim: int, *, ratio: float = 4, layers: int = 1, residual: bool = True, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "ratio": ratio, "layers": layers}.items():
            if not 1 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be at least 1 and finite")
        widths = [dim, *[int(ratio * dim)] * layers]
        hidden = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.net = nn.Sequential(*(part for block in hidden for part in block), nn.Linear(widths[-1], dim))
        self.scale = nn.Parameter(torch.full((1, dim), float(res_scale))) if residual else None

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        changed = self.net(features)
        return changed if self.scale is None else self.scale * changed + features
