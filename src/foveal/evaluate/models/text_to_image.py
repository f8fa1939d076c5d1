"""A text-to-image pipeline of diffusers: prompts in, pictures out; and what its autoencoder makes of a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveal.evaluate.base import Kind

STEPS, GUIDANCE = 30, 3.0


class TextToImage:
    """Pictures that each depend on their prompt, key and seed alone, in whatever batch they are made.

    Args:
        pipeline: called as ``StableDiffusionPipeline`` is.
        batch_size: most pictures at once.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 is none.
    """

    kind: Kind = "text-to-image"

    def __init__(self, pipeline: Any, batch_size: int = 32, steps: int = STEPS, guidance: float = GUIDANCE) -> None:
        if steps < 1 or guidance < 0:
            raise ValueError(f"steps={steps}, guidance={guidance}: steps must be at least 1, guidance at least 0")
        self.pipeline, self.batch_size, self.steps, self.guidance = pipeline, batch_size, steps, guidance
        self.pipeline.set_progress_bar_config(disable=True)

    def pictures(self, prompts: Sequence[str], keys: Sequence[str], seed: int = 0) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """One RGB picture for each prompt, started from noise that (seed, its key) decides."""
        found: list[UInt8[np.ndarray, "_ _ 3"]] = []
        for start in range(0, len(prompts), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            made = self.pipeline(
                prompt=list(prompts[chunk]),
                generator=[_generator(f"{seed} {key}") for key in keys[chunk]],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                output_type="np",
            ).images
            found += list((255 * np.asarray(made)).round().clip(0, 255).astype(np.uint8))
        return found

    @torch.no_grad()
    def reconstructions(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[Tensor, "n 3 h w"]:
        """Pictures of one size through the autoencoder and back, 0 to 1, on the CPU; the latent's mode, no sampling."""
        vae = self.pipeline.vae
        rows = []
        for start in range(0, len(images), self.batch_size):
            pixels = torch.from_numpy(np.stack(images[start : start + self.batch_size])).permute(0, 3, 1, 2)
            latent = vae.encode((pixels / 127.5 - 1).to(vae.device, vae.dtype)).latent_dist.mode()
            rows.append(((vae.decode(latent).sample.float() + 1) / 2).clamp(0, 1).cpu())
        return torch.cat(rows)


def _generator(text: str) -> torch.Generator:
    """On the CPU, so that the noise is the same on every device."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
