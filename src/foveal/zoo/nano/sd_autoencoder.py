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
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from foveal.train import FitConfig, FitReport, fit
from foveal.zoo.cache import cached_folder
from foveal.zoo.nano.scenes import DrawnScenes

if TYPE_CHECKING:
    from foveal.zoo.nano.sd import SdTraining

FIRST_LOG_VARIANCE = -6.0
AT_ONCE = 64
"""Pictures that are encoded together."""
STANDARD = 1024
"""Pictures that the latents are standardised on."""
PARTS = ("mean", "std")
"""Files of the cached latents."""


def build_autoencoder(settings: SdTraining) -> AutoencoderKL:
    """With weights drawn from the seed. Without attention in the middle it is local, and so good at any size."""
    channels = settings.latent_channels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(settings.seed)
        model = AutoencoderKL(
            block_out_channels=settings.autoencoder_widths,
            down_block_types=("DownEncoderBlock2D",) * len(settings.autoencoder_widths),
            up_block_types=("UpDecoderBlock2D",) * len(settings.autoencoder_widths),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,  # with many, the colour of a plain picture is normalised away
            sample_size=settings.world.shape[0],
            mid_block_add_attention=False,
        )
        transparent_start(model)
        # a posterior that hardly varies at first: noise of the latents' own size hides what there is to learn
        model.quant_conv.weight[channels:] = 0
        model.quant_conv.bias[channels:] = FIRST_LOG_VARIANCE
    return model


def transparent_start(model: nn.Module) -> None:
    """Convolutions of unit gain and residual blocks that add nothing at first, so that signals pass at their own size.

    With torch's weaker convolutions and full residual branches, hundreds of steps go by before colours come through.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Transformer2DModel):
            nn.init.zeros_(module.proj_out.weight)


def train_autoencoder(scenes: DrawnScenes, settings: SdTraining, work: Path) -> tuple[AutoencoderKL, FitReport]:
    """In evaluation mode, with ``scaling_factor`` still to be set; a finished run in ``work`` is only read."""
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

    report = fit(model, _Pictures(scenes), steps=settings.autoencoder_steps, loss=loss, config=config, out=work)
    standardise(model, scenes.images[:STANDARD])
    return model, report


def pixels(pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """From 0 … 255 to −1 … 1, as diffusers' pipelines have it."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def autoencoder_loss(
    model: AutoencoderKL, pictures: Float[Tensor, "b 3 h w"], gradient_weight: float, prior_weight: float
) -> dict[str, Tensor]:
    """ "loss" and its three parts.

    With error e of the reconstruction: mean |e| + 2 e² + gradient_weight · mean |∇e| + prior_weight · KL, where ∇ are
    the differences of neighbouring pixels and KL (to a standard normal) is the mean over the latents' values.
    """
    posterior = model.encode(pictures).latent_dist
    error = model.decode(posterior.sample()).sample - pictures
    colour = (error.abs() + 2 * error**2).mean()
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


@torch.no_grad()
def standardise(model: AutoencoderKL, pictures: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Give each channel of the latents of these pictures mean 0 and variance 1, without changing a reconstruction.

    ``scaling_factor`` is one number, but the channels differ by far: a weak one would drown in the noise of diffusion
    at once. What is taken off behind the encoder is put back in front of the decoder, in convolutions that are there.
    """
    found = [
        model.encode(pixels(torch.from_numpy(np.array(pictures[start : start + AT_ONCE])))).latent_dist
        for start in range(0, len(pictures), AT_ONCE)
    ]
    means = torch.cat([posterior.mean for posterior in found])
    variance = torch.cat([posterior.var for posterior in found]).mean((0, 2, 3)) + means.var((0, 2, 3))
    mean, std = means.mean((0, 2, 3)), variance.sqrt()
    after: Any = model.quant_conv
    before: Any = model.post_quant_conv
    n = len(mean)
    after.weight[:n] /= std[:, None, None, None]
    after.bias[:n] = (after.bias[:n] - mean) / std
    after.bias[n:] -= 2 * std.log()
    before.bias += before.weight[:, :, 0, 0] @ mean
    before.weight *= std[None, :, None, None]


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
