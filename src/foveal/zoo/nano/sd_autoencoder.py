"""nano-sd's first stage: an ``AutoencoderKL`` for 64 px, and its latents of all training pictures, encoded once.

Kingma & Welling's autoencoder (arXiv 1312.6114) with next to no weight on its prior, as latent diffusion has it
(Rombach et al., arXiv 2112.10752). There pictures are compared by a pretrained network and a discriminator; drawn
scenes are flat areas with hard edges, for which differences of pixels and of neighbouring pixels do.
"""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from foveal.train import FitConfig, FitReport, fit
from foveal.zoo.cache import cached_folder
from foveal.zoo.nano.scenes import DrawnScenes

if TYPE_CHECKING:
    from foveal.zoo.nano.sd import SdTraining

AT_ONCE = 64
"""Pictures that are encoded together."""
PARTS = ("mean", "std")
"""Files of the cached latents."""


def build_autoencoder(settings: SdTraining) -> AutoencoderKL:
    """With weights drawn from the seed. Without attention in the middle it is local, and so good at any size."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        return AutoencoderKL(
            block_out_channels=settings.autoencoder_widths,
            down_block_types=("DownEncoderBlock2D",) * len(settings.autoencoder_widths),
            up_block_types=("UpDecoderBlock2D",) * len(settings.autoencoder_widths),
            layers_per_block=1,
            latent_channels=settings.latent_channels,
            norm_num_groups=8,
            sample_size=settings.world.shape[0],
            mid_block_add_attention=False,
        )


def train_autoencoder(scenes: DrawnScenes, settings: SdTraining, work: Path) -> tuple[AutoencoderKL, FitReport]:
    """Trained in evaluation mode, with ``scaling_factor`` still to be set; a finished run in ``work`` is only read."""
    model = build_autoencoder(settings)
    config = FitConfig(
        lr=settings.autoencoder_lr,
        batch_size=settings.autoencoder_batch,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        save_every=250,
        keep=1,
        seed=settings.seed,
    )

    def loss(model: AutoencoderKL, batch: UInt8[Tensor, "b h w 3"]) -> dict[str, Tensor]:
        return autoencoder_loss(model, pixels(batch), settings.gradient_weight, settings.prior_weight)

    return model, fit(model, _Pictures(scenes), steps=settings.autoencoder_steps, loss=loss, config=config, out=work)


def pixels(pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """From 0 … 255 to −1 … 1, as diffusers' pipelines have it."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def autoencoder_loss(
    model: AutoencoderKL, pictures: Float[Tensor, "b 3 h w"], gradient_weight: float, prior_weight: float
) -> dict[str, Tensor]:
    """ "loss" and its three parts.

    With reconstruction x̂ of picture x: mean |x̂ − x| + gradient_weight · mean |∇x̂ − ∇x| + prior_weight · KL, where ∇ are
    the differences of neighbouring pixels and KL (to a standard normal) is the mean over the latents' values.
    """
    posterior = model.encode(pictures).latent_dist
    error = model.decode(posterior.sample()).sample - pictures
    colour = error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    prior = posterior.kl().mean() / posterior.mean[0].numel()
    return {
        "loss": colour + gradient_weight * edges + prior_weight * prior,
        "colour": colour,
        "edges": edges,
        "prior": prior,
    }


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: UInt8[np.ndarray, "n h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB of the reconstructions from mean latents; the mean over pictures."""
    values = []
    for start in range(0, len(pictures), AT_ONCE):
        batch = pixels(torch.from_numpy(np.array(pictures[start : start + AT_ONCE])))
        again = model.decode(model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        errors = F.mse_loss(again, batch, reduction="none").mean((1, 2, 3)) / 4  # pixels span 2
        values += [-10 * math.log10(max(error, 1e-10)) for error in errors.tolist()]
    return float(np.mean(values))


@dataclass(frozen=True)
class Latents:
    """What the encoder says of every picture: a normal distribution for each value of its latents.

    The arrays lie in the user's cache under the digest of the encoder and the scenes.
    """

    mean: Float[np.ndarray, "n c h w"]
    std: Float[np.ndarray, "n c h w"]
    digest: str

    @cached_property
    def scale(self) -> float:
        """One over the standard deviation of all values, sampling included: diffusers' ``scaling_factor``."""
        mean, std = self.mean.astype(np.float64), self.std.astype(np.float64)
        return float(1 / np.sqrt(mean.var() + (std**2).mean()))


def encode_scenes(model: AutoencoderKL, scenes: DrawnScenes) -> Latents:
    """Latents of all pictures in order, from the cache when this encoder has seen them before."""
    digest = hashlib.sha256(f"{scenes!r}".encode())
    digest.update(np.ascontiguousarray(scenes.images[:AT_ONCE]).tobytes())
    for name, value in model.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(value.numpy().tobytes())
    name = digest.hexdigest()[:16]

    @torch.no_grad()
    def write(folder: Path) -> None:
        shape = (len(scenes), *_latent_shape(model, scenes))
        mean, std = (np.lib.format.open_memmap(folder / f"{part}.npy", "w+", np.float16, shape) for part in PARTS)
        console = Console(stderr=True)
        starts = range(0, len(scenes), AT_ONCE)
        for start in track(starts, "encoding scenes", console=console, disable=not sys.stderr.isatty()):
            batch = torch.from_numpy(np.array(scenes.images[start : start + AT_ONCE]))
            posterior = model.encode(pixels(batch)).latent_dist
            mean[start : start + AT_ONCE] = posterior.mean.numpy()
            std[start : start + AT_ONCE] = posterior.std.numpy()
        mean.flush()
        std.flush()

    folder = cached_folder(f"latents-{name}", write)
    mean, std = (np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in PARTS)
    return Latents(mean, std, name)


def _latent_shape(model: AutoencoderKL, scenes: DrawnScenes) -> tuple[int, int, int]:
    config: Any = model.config
    smaller = 2 ** (len(config.block_out_channels) - 1)
    height, width = scenes.config.shape
    return config.latent_channels, height // smaller, width // smaller


@dataclass(frozen=True)
class _Pictures:
    scenes: DrawnScenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.array(self.scenes.images[index])
