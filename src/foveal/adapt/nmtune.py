"""NMTune: what label noise in pretraining leaves in the features, and a small MLP that makes up for it afterwards.

    SVE = −Σᵢ pᵢ log pᵢ,   LSVR = −log p₁         pᵢ = sᵢ / Σⱼ sⱼ, s: singular values of the features (M, D)

Both rise with noise: the leading direction weakens while more directions fill up. The encoder stays a black box. Its
frozen features f are reshaped by ``z = scale · MLP(f) + f``, trained with a linear classifier on z under

    L = CE + w₁ · mean (ẑ − f̂)²                       consistency: keep what was pretrained; ẑ = z/‖z‖, f̂ = f/‖f‖
           + w₂ · Σ_{i≠j} C_ij² / D                    covariance of the batch: decorrelate
           − w₃ · (1/k) Σ_{i≤k} sᵢ(Z) / Σⱼ sⱼ(Z)       dominant singular values: strengthen the leading subspace

Consistency and the last term do not depend on the scale of the features, covariance grows with its fourth power: the
default weights presume a standard deviation below about 1 in each dimension (``rescale`` of the estimator sees to it).

Hao Chen, Jindong Wang, Ankit Shah, et al.: Understanding and Mitigating the Label Noise in Pre-training on Downstream
Tasks. ICLR 2024, arXiv 2309.17002.

Departures: SVE and LSVR act on the features as they are; the released analysis first makes rows unit vectors and
subtracts each ROW's own mean, ours offers ``normalize`` and a ``center`` by columns. The paper writes one λ = 0.01 over
the three terms and k = 1, the release has weights (1, 0.04, 0.001) and k = 5.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from foveal.adapt.nmtune_classifier import NMTuneClassifier as NMTuneClassifier
from foveal.adapt.nmtune_terms import NMTuneMLP as NMTuneMLP
from foveal.adapt.nmtune_terms import NMTuneOutput as NMTuneOutput
from foveal.adapt.nmtune_terms import check_rows
from foveal.adapt.nmtune_terms import consistency_loss as consistency_loss
from foveal.adapt.nmtune_terms import covariance_loss as covariance_loss
from foveal.adapt.nmtune_terms import dominant_singular_value_loss as dominant_singular_value_loss
from foveal.adapt.nmtune_terms import nmtune_loss as nmtune_loss

T = TypeVar("T")

# Analysis -------------------------------------------------------------------------------------------------------------


def singular_spectrum(
    features: Float[Tensor, "m d"], *, center: bool = False, normalize: bool = False
) -> Float[Tensor, " n"]:
    """Singular values, descending, n = min(M, D); in float64.

    Args:
        normalize: first make every row a unit vector.
        center: then subtract the mean of every column.

    Raises ValueError for what is no matrix of finite numbers.
    """
    check_rows(features, "features", least=1)
    wide = features.detach().double()
    if normalize:
        wide = F.normalize(wide, dim=1)
    if center:
        wide = wide - wide.mean(0)
    return torch.linalg.svdvals(wide)


def singular_value_entropy(features: Float[Tensor, "m d"], *, center: bool = False, normalize: bool = False) -> float:
    """SVE in nats, in [0, log min(M, D)]: how many directions the features use. Options as `singular_spectrum`."""
    shares = _shares(features, center, normalize)
    return float(torch.special.entr(shares).sum())  # 0 · log 0 = 0


def largest_singular_value_ratio(
    features: Float[Tensor, "m d"], *, center: bool = False, normalize: bool = False
) -> float:
    """LSVR = −log p₁, at least 0: how weak the leading direction is. Options as `singular_spectrum`."""
    return abs(float(_shares(features, center, normalize)[0].log()))  # not -0.0


def _shares(features: Tensor, center: bool, normalize: bool) -> Float[Tensor, " n"]:
    spectrum = singular_spectrum(features, center=center, normalize=normalize)
    if float(spectrum[0]) == 0:
        raise ValueError("features are all zero (or all rows alike, with center=True): they have no direction")
    return spectrum / spectrum.sum()


# Noise ----------------------------------------------------------------------------------------------------------------


def flip_labels(
    labels: Int64[Tensor, " n"], ratio: float, num_classes: int, generator: torch.Generator
) -> Int64[Tensor, " n"]:
    """Exactly round(ratio · N) labels become another class, each of the others as likely as any."""
    _check_ratio(ratio)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: must be at least 2, or there is no other class")
    if labels.ndim != 1 or labels.is_floating_point() or bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(f"labels {tuple(labels.shape)} must be one list of classes in [0, {num_classes - 1}]")
    chosen = torch.randperm(len(labels), generator=generator)[: round(ratio * len(labels))]
    steps = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    flipped = labels.clone()
    flipped[chosen] = (labels[chosen] + steps.to(labels)) % num_classes
    return flipped


def swap_captions(captions: Sequence[T], ratio: float, generator: torch.Generator) -> list[T]:
    """round(ratio · N) captions go around in a circle, so that each of them moves; a single one cannot."""
    _check_ratio(ratio)
    chosen = torch.randperm(len(captions), generator=generator)[: round(ratio * len(captions))].tolist()
    swapped = list(captions)
    for place, source in zip(chosen, chosen[1:] + chosen[:1]):
        swapped[place] = captions[source]
    return swapped


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}: must be a share in [0, 1]")
