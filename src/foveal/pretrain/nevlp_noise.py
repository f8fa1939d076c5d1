"""NEVLP's estimate of which pairs are noise: early in training clean pairs have a small loss, noisy ones a large one.

    ℓ_i = ½ (CE of row i + CE of column i)        plain contrastive loss of pair i, scaled to [0, 1] over the epoch
    ℓ ~ Σ_k w_k N(μ_k, σ²_k),  k = 0, 1           fitted by EM
    ε_i = P(the component with the larger mean | ℓ_i)

See `foveal.pretrain.nevlp`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.pretrain.base import at_least_float32, mean_over_processes


@dataclass(frozen=True)
class NoiseGMM:
    """Two Gaussians over losses scaled to [0, 1], in float64; component 0 started at 0, component 1 at 1."""

    means: Float[Tensor, " 2"]
    variances: Float[Tensor, " 2"]
    weights: Float[Tensor, " 2"]
    noise_prob: Float[Tensor, " n"]


@torch.no_grad()
def fit_noise_gmm(losses: Float[Tensor, " n"], num_iter: int = 50, reg: float = 1e-4) -> NoiseGMM:
    """EM from a fixed start: means 0 and 1, both variances that of the data, weights ½.

    Args:
        losses: plain contrastive losses of a whole epoch, without regularisation: else noise would breed noise.
        num_iter: rounds of E and M; a last E gives ``noise_prob``.
        reg: added to the variances of every M.

    ``noise_prob`` is 0 where all losses are equal, but for the rounding of their precision. Raises ValueError unless
    there are at least two finite losses, and for a ``num_iter`` or ``reg`` that is negative or not finite.
    """
    if losses.ndim != 1 or len(losses) < 2:
        raise ValueError(f"losses {tuple(losses.shape)} must be (n,) with n at least 2: the losses of a whole epoch")
    if not bool(losses.isfinite().all()):
        raise ValueError("losses holds NaN or infinity: check the features that they were computed from")
    if num_iter < 0 or not 0 <= reg < math.inf:
        raise ValueError(f"num_iter={num_iter}, reg={reg}: neither may be negative, reg must be finite")
    x, tiny = losses.double(), torch.finfo(torch.double).tiny
    rounding = torch.finfo(losses.dtype if losses.is_floating_point() else x.dtype).eps * x.abs().max().clamp_min(1)
    spread = x.max() - x.min()
    alike = spread <= 16 * rounding  # the logarithms and sums behind a loss are off by a few of these
    scaled = (x - x.min()) / spread.masked_fill(alike, 1)
    means = scaled.new_tensor([0.0, 1.0])
    variances, weights = scaled.var(correction=0).expand(2), scaled.new_tensor([0.5, 0.5])
    if bool(alike):
        return NoiseGMM(means, variances.clone(), weights, torch.zeros_like(x))
    for _ in range(num_iter):
        shares = _shares(scaled, means, variances, weights)
        mass = shares.sum(0).clamp_min(tiny)
        means = shares.mT @ scaled / mass
        variances = ((shares * (scaled[:, None] - means).square()).sum(0) / mass + reg).clamp_min(tiny)
        weights = mass / len(x)
    noisy = int(means.argmax())
    return NoiseGMM(means, variances, weights, _shares(scaled, means, variances, weights)[:, noisy])


def _shares(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Float[Tensor, "n 2"]:
    """How much of each value belongs to each component; rows sum to 1."""
    log_density = -(x[:, None] - means).square() / (2 * variances) - variances.log() / 2 + weights.log()
    return log_density.softmax(1)


class NoiseEstimator(nn.Module):
    """The noise probability of every pair of a dataset, estimated anew after each epoch; saved with the checkpoint.

    ``estimator(index)`` gives the ε of a batch. During the epoch `record` its plain losses (`NevlpOutput` has them),
    after it call `refresh`, in a distributed run on every process: the mixture is that of the pairs of all of them.
    Until the first refresh ε is 0: that is the warm-up.
    """

    losses: Tensor
    noise_prob: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"size={size}: must be at least 2, the number of pairs in the dataset")
        self.register_buffer("losses", torch.full((size,), math.nan))
        self.register_buffer("noise_prob", torch.zeros(size))

    def forward(self, index: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.noise_prob[index]

    @torch.no_grad()
    def record(self, index: Int[Tensor, " b"], per_sample_itc: Float[Tensor, " b"]) -> None:
        """Losses of the pairs ``index`` of the dataset."""
        if index.shape != per_sample_itc.shape:
            shapes = f"index {tuple(index.shape)}, per_sample_itc {tuple(per_sample_itc.shape)}"
            raise ValueError(f"{shapes}: must be (B,) alike")
        self.losses[index] = per_sample_itc.to(self.losses)

    def refresh(self) -> NoiseGMM:
        """Fit the mixture to what all processes recorded, and forget it. Pairs that no one saw keep their ε.

        Of a pair that several processes saw, the mean of its losses counts.
        """
        here = ~self.losses.isnan()
        total, count = mean_over_processes(torch.stack([self.losses.masked_fill(~here, 0), here.to(self.losses)]))
        seen = count > 0
        mixture = fit_noise_gmm(total[seen] / count[seen])
        self.noise_prob[seen] = mixture.noise_prob.to(self.noise_prob)
        self.losses.fill_(math.nan)
        return mixture


def itc_per_sample(sim: Float[Tensor, "b b"], temperature: float | Tensor = 0.07) -> Float[Tensor, " b"]:
    """Half the cross-entropy of row i plus half that of column i; the plain contrastive loss is the mean."""
    logits = scaled_scores(sim, temperature)
    own = torch.arange(len(sim), device=sim.device)
    rows = F.cross_entropy(logits, own, reduction="none")
    return (rows + F.cross_entropy(logits.mT, own, reduction="none")) / 2


def scaled_scores(sim: Float[Tensor, "b b"], temperature: float | Tensor) -> Float[Tensor, "b b"]:
    """sim / temperature in float32 or better. ValueError unless sim is square and the temperature positive."""
    if sim.ndim != 2 or sim.shape[0] != sim.shape[1] or len(sim) == 0:
        raise ValueError(f"sim {tuple(sim.shape)} must be (B, B), a row for each image and a column for each text")
    value = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
    if not 0 < value < math.inf:
        raise ValueError(f"temperature={value}: must be positive and finite")
    return at_least_float32(sim) / temperature
