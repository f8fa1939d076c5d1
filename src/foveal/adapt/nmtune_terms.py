"""NMTune's MLP and the terms that it is trained under; `foveal.adapt.nmtune` says what they are for."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

WEIGHTS = (1.0, 0.04, 0.001)
"""Of consistency, covariance and dominant singular values, as released."""
_SHAPES = "features {} must have the shape of mlp_features {}"


def check_rows(rows: Float[Tensor, "n d"], name: str, least: int = 2) -> None:
    """ValueError unless there are at least ``least`` rows of finite numbers."""
    if rows.ndim != 2 or len(rows) < least or rows.shape[1] == 0:
        raise ValueError(f"{name} {tuple(rows.shape)} must be (rows, dimensions) with at least {least} row(s)")
    if not bool(rows.detach().isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: check the encoder's output")


def consistency_loss(features: Float[Tensor, "n d"], mlp_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared difference of the unit vectors; no gradient reaches ``features``. 0 when z = c·f with c > 0."""
    check_rows(mlp_features, "mlp_features")
    if features.shape != mlp_features.shape:
        raise ValueError(_SHAPES.format(tuple(features.shape), tuple(mlp_features.shape)))
    return F.mse_loss(F.normalize(mlp_features, dim=1), F.normalize(features.detach(), dim=1))


def covariance_loss(mlp_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Squared covariances between different dimensions, unbiased, summed and divided by D."""
    check_rows(mlp_features, "mlp_features")
    centred = mlp_features - mlp_features.mean(0)
    covariance = centred.mT @ centred / (len(mlp_features) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / mlp_features.shape[1]


def dominant_singular_value_loss(mlp_features: Float[Tensor, "n d"], *, k: int = 1) -> Float[Tensor, ""]:
    """Minus the share of the k largest singular values, divided by k, of the batch as it is (not centred).

    In [−1, 0).
    """
    check_rows(mlp_features, "mlp_features")
    if not 1 <= k <= min(mlp_features.shape):
        shape = tuple(mlp_features.shape)
        raise ValueError(f"k={k}: must lie in [1, {min(shape)}] for mlp_features {shape}")
    spectrum = torch.linalg.svdvals(mlp_features)
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
    labels: Int64[Tensor, " n"],
    features: Float[Tensor, "n d"],
    mlp_features: Float[Tensor, "n d"],
    *,
    weights: Sequence[float] = WEIGHTS,
    k: int = 1,
    consistency_target: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]] | None = None,
) -> NMTuneOutput:
    """Cross-entropy and the three weighted terms of a batch.

    Args:
        features: of the frozen encoder; no gradient reaches them.
        weights: of consistency, covariance and dominant singular values; a term of weight 0 is still computed.
        k: leading singular values.
        consistency_target: (features of view 1, mlp_features of view 2) for the first term, where the rows of the batch
            are two views one after the other.

    Raises ValueError for shapes that do not fit, fewer than 2 rows, and a k outside [1, min(N, D)].
    """
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights={tuple(weights)}: must be three finite numbers ≥ 0")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(logits) != len(mlp_features):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must have one row for each of "
            f"mlp_features {tuple(mlp_features.shape)}"
        )
    ce = F.cross_entropy(logits, labels)
    consistency = consistency_loss(*(consistency_target or (features, mlp_features)))
    if features.shape != mlp_features.shape:
        raise ValueError(_SHAPES.format(tuple(features.shape), tuple(mlp_features.shape)))
    terms = (consistency, covariance_loss(mlp_features), dominant_singular_value_loss(mlp_features, k=k))
    total = ce + sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return NMTuneOutput(total, ce, *terms)


class NMTuneMLP(nn.Module):
    """z = scale · MLP(f) + f, or without the residual MLP(f); ``layers`` hidden layers of width ratio · D.

    Batch norm makes training depend on the batch, which needs two rows or more; in evaluation mode it does not.
    """

    def __init__(
        self, dim: int, *, ratio: int = 4, layers: int = 1, residual: bool = True, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "ratio": ratio, "layers": layers}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        widths = [dim, *[ratio * dim] * layers]
        hidden = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.net = nn.Sequential(*(part for block in hidden for part in block), nn.Linear(widths[-1], dim))
        self.scale = nn.Parameter(torch.full((1, dim), float(res_scale))) if residual else None

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        changed = self.net(features)
        return changed if self.scale is None else self.scale * changed + features
