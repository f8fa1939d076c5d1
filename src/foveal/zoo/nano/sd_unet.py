"""nano-sd's second stage: a ``UNet2DConditionModel`` and its text encoder learn to denoise latents, told a caption.

Velocity prediction (Salimans & Ho, arXiv 2202.00512) on a noise schedule that ends in pure noise (Lin et al.,
arXiv 2305.08891): otherwise no sample could be much brighter or darker than the mean picture, and many of our scenes
have a ground of one colour. Some captions are left out, for classifier-free guidance (Ho & Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from foveal.data.world.captions import short_caption
from foveal.train import FitConfig, FitReport, fit
from foveal.train.order import StepOrder
from foveal.zoo.nano.scenes import DrawnScenes
from foveal.zoo.nano.sd_autoencoder import Latents, transparent_start

if TYPE_CHECKING:
    from foveal.zoo.nano.sd import SdTraining


def build_unet(settings: SdTraining, latents: Latents, text_width: int) -> UNet2DConditionModel:
    """With weights drawn from the seed; it first predicts zeros, the mean of what it is to learn."""
    channels, side = latents.mean.shape[1:3]
    told = settings.unet_told
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=settings.unet_widths,
            down_block_types=tuple("CrossAttnDownBlock2D" if level else "DownBlock2D" for level in told),
            up_block_types=tuple("CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(told)),
            layers_per_block=settings.unet_layers,
            norm_num_groups=8,
            attention_head_dim=settings.unet_heads,  # diffusers' misnomer: it is the number of heads
            cross_attention_dim=text_width,
        )
        transparent_start(model)
        nn.init.zeros_(model.conv_out.weight)
    return model


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, rescaled to end in pure noise; sampling begins at that very level."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


class WeightAverage(nn.Module):
    """Exponential moving average of the trainable parameters of ``model``, in buffers that travel with checkpoints.

    In the first steps it forgets faster, so that it does not hang on to the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.zeros(()))
        for name, parameter in _trainable(model).items():
            self.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        steps = self.get_buffer("steps").add_(1).item()
        decay = min(self.decay, (1 + steps) / (10 + steps))
        places = _trainable(model)
        torch._foreach_lerp_([self.get_buffer(name) for name in places], list(places.values()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, parameter in _trainable(model).items():
            parameter.copy_(self.get_buffer(name))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """A buffer's name must have no dot."""
    return {name.replace(".", "-"): value for name, value in model.named_parameters() if value.requires_grad}


class Denoiser(nn.Module):
    """U-Net and text encoder, trained together, and the average of their weights, which is what gets published."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, decay: float) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.average = WeightAverage(self, decay)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], tokens: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b c h w"]:
        said = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, said).sample

    def after_step(self) -> None:
        self.average.update(self)


class CaptionedLatents:
    """Batches without end, as `foveal.train.fit` takes them: batch k is a function of (scenes, latents, seed, k).

    Each has ``latents`` (sampled, of unit variance), ``noise`` alike, ``timesteps`` (b,) and ``tokens`` (b, l).
    """

    def __init__(
        self, scenes: DrawnScenes, latents: Latents, tokenizer: CLIPTokenizer, levels: int, settings: SdTraining
    ) -> None:
        self.scenes, self.latents, self.tokenizer, self.settings = scenes, latents, tokenizer, settings
        self.levels = levels
        self.order = StepOrder(len(scenes), settings.batch, settings.seed)
        self.next = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self.next += 1
            yield self.batch(self.next - 1)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]

    def batch(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.settings.seed, number, 2))  # (seed, i) alone is how scene i was laid out
        rows = self.order.indices(number)
        mean, std = self.latents.mean[rows].astype(np.float32), self.latents.std[rows].astype(np.float32)
        drawn, noise = rng.standard_normal((2, *mean.shape), dtype=np.float32)
        # one noise level from each of b equal intervals: the loss of a batch varies less than with free draws
        levels = (np.arange(len(rows)) + rng.random(len(rows))) * self.levels / len(rows)
        captions = [
            "" if rng.random() < self.settings.unsaid else short_caption(self.scenes.scene(int(row)), rng)
            for row in rows
        ]
        return {
            "latents": torch.from_numpy((mean + std * drawn) * np.float32(self.latents.scale)),
            "noise": torch.from_numpy(noise),
            "timesteps": torch.from_numpy(levels.astype(np.int64)),
            "tokens": tokenize(self.tokenizer, captions),
        }


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "b l"]:
    """Padded to the tokenizer's longest text, as Stable Diffusion's pipeline does: the U-Net looks at padding too."""
    ids: Any = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return ids.input_ids


def denoising_loss(model: Denoiser, batch: dict[str, Tensor], scheduler: DDIMScheduler) -> Float[Tensor, ""]:
    """Mean squared error of the predicted velocity √ᾱ·ε − √(1 − ᾱ)·x at one noise level for each sample."""
    latents, noise = batch["latents"], batch["noise"]
    timesteps: Any = batch["timesteps"]
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    return F.mse_loss(model(noisy, timesteps, batch["tokens"]), velocity)


def train_denoiser(
    denoiser: Denoiser, batches: CaptionedLatents, scheduler: DDIMScheduler, settings: SdTraining, work: Path
) -> FitReport:
    """In place; afterwards U-Net and text encoder hold their average weights."""
    config = FitConfig(
        lr=settings.lr,
        batch_size=settings.batch,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.99),
        optimizer="muon",
        save_every=250,
        keep=1,
        seed=settings.seed,
        after_step=Denoiser.after_step,
    )

    def loss(model: Denoiser, batch: dict[str, Tensor]) -> Tensor:
        return denoising_loss(model, batch, scheduler)

    report = fit(denoiser, batches, steps=settings.steps, loss=loss, config=config, out=work)
    denoiser.average.copy_to(denoiser)
    return report
