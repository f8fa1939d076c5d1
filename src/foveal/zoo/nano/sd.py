"""nano-sd: latent diffusion at 64 px in Stable Diffusion's own classes, trained on drawn scenes with captions.

Three stages, each of which is taken up again where it stopped: the autoencoder (`sd_autoencoder`), its latents of all
scenes (kept in the user's cache), U-Net with text encoder (`sd_unet`). The text encoder begins as nano-clip's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from foveal.data.world.config import WorldConfig
from foveal.zoo.nano import folder
from foveal.zoo.nano.scenes import SD_WORLD, DrawnScenes
from foveal.zoo.nano.sd_autoencoder import encode_scenes, train_autoencoder
from foveal.zoo.nano.sd_unet import CaptionedLatents, Denoiser, build_scheduler, build_unet, train_denoiser
from foveal.zoo.nano.training import TrainingRecord, check_destination, digest, loss_curve, publish_checkpoint
from foveal.zoo.quiet import quiet_loading

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

DATA = (
    "Scenes of foveal's procedural world with one large thing (the nouns are in the configuration), each met with "
    "a short caption that was made anew."
)
LIMITS = (
    "It draws scenes of this world and nothing else: other words are ignored or misread. One thing to a picture: asked "
    "for two, it draws one or mixes them. 64 px only. No safety checker, since none of its words needs one."
)


@dataclass(frozen=True)
class SdTraining:
    """All that shapes the weights."""

    world: WorldConfig = SD_WORLD
    scenes: int = 30_000
    seed: int = 0
    autoencoder_widths: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    autoencoder_steps: int = 6000
    autoencoder_batch: int = 4
    autoencoder_lr: float = 2e-3
    gradient_weight: float = 1.0
    prior_weight: float = 1e-3
    unet_widths: tuple[int, ...] = (32, 64, 112)
    unet_told: tuple[bool, ...] = (False, True, True)
    """Levels, from the finest, that attend to the caption and to themselves."""
    unet_layers: int = 1
    unet_heads: int = 4
    steps: int = 11_000
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.01
    average: float = 0.999
    """Decay of the moving average of the weights."""
    unsaid: float = 0.1
    """Share of samples whose caption is left out."""
    longest_text: int = 16
    """Tokens; every text is padded to it."""


def train(out: Path, work: Path, smoke: bool = False, text: Path | None = None) -> Path:
    """Train nano-sd and publish it in ``out``; a killed run goes on from ``work``.

    Args:
        out: folder of the finished checkpoint.
        work: folder for the checkpoints on the way.
        smoke: a couple of steps of a small copy.
        text: folder of the ``CLIPModel`` and tokenizer that the text encoder begins as; the shipped nano-clip if None.
    """
    check_destination(out)
    settings = SdTraining()
    if smoke:
        settings = replace(
            settings, scenes=32, autoencoder_steps=2, steps=2, autoencoder_batch=4, batch=4, unet_widths=(16, 16, 32)
        )
    with quiet_loading():
        source = text or folder("nano-clip")
        text_encoder = CLIPTextModel.from_pretrained(source, dtype="float32")
        tokenizer = CLIPTokenizer.from_pretrained(source, model_max_length=settings.longest_text)
    scenes = DrawnScenes(settings.world, settings.seed, settings.scenes)
    autoencoder, first = train_autoencoder(scenes, settings, work / "autoencoder")
    latents = encode_scenes(autoencoder, scenes)
    autoencoder.register_to_config(scaling_factor=latents.scale)
    scheduler = build_scheduler()
    unet = build_unet(settings, latents, text_encoder.config.hidden_size)
    denoiser = Denoiser(unet, text_encoder, settings.average)
    batches = CaptionedLatents(scenes, latents, tokenizer, len(scheduler.alphas_cumprod), settings)
    place = work / f"unet-{latents.digest}-{digest(source)[:16]}"  # other latents, other texts: another run
    second = train_denoiser(denoiser, batches, scheduler, settings, place)
    pipeline = assemble(autoencoder, denoiser, tokenizer, scheduler)
    curves = {"autoencoder": loss_curve(first.losses), "denoising": loss_curve(second.losses)}
    seconds = first.seconds_in_all + second.seconds_in_all
    config = {**asdict(settings), "nano-clip": digest(source)}
    record = TrainingRecord("nano-sd", "foveal train nano-sd", config, DATA, LIMITS, seconds, curves)
    return publish_checkpoint(out, pipeline.save_pretrained, record)


def assemble(
    autoencoder: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    """The parts as one pipeline, in half precision."""
    with quiet_loading():  # the import regrets that torchvision is missing
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    parts: dict[str, Any] = {
        "vae": autoencoder.half(),
        "text_encoder": denoiser.text_encoder.half(),
        "tokenizer": tokenizer,
        "unet": denoiser.unet.half(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)
