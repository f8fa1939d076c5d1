"""Pictures on their way to noise, by the schedule of VCD's and POVID's released code.

ᾱ_t = Π_{i≤t} (1 − β_i),  β = σ(linspace(−6, 6, T))·(0.005 − 10⁻⁵) + 10⁻⁵,  x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε
"""

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 1000


def alpha_bar_schedule(num_steps: int = STEPS) -> Float[Tensor, " t"]:
    """ᾱ of every step, falling from nearly 1; float32. ValueError: fewer than one step."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be at least 1")
    betas = torch.linspace(-6, 6, num_steps).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return (1 - betas).cumprod(0)


def add_diffusion_noise(
    images: Float[Tensor, "*b c h w"],
    step: int = 500,
    *,
    noise: Float[Tensor, "*b c h w"] | None = None,
    generator: torch.Generator | None = None,
    clamp: bool = False,
    num_steps: int = STEPS,
) -> Float[Tensor, "*b c h w"]:
    """The images after ``step`` steps of diffusion.

    Args:
        images: values in [0, 1], before any padding and normalisation.
        step: index into the schedule, from 0 on.
        noise: ε of the images' shape; else it is drawn.
        generator: what draws; without one torch's own does, as for dropout.
        clamp: back into [0, 1], for who writes image files.
        num_steps: length of the schedule.

    Raises:
        ValueError: a step outside the schedule, noise of another shape, or integer images.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step={step}: must lie in [0, num_steps={num_steps})")
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}: give floats in [0, 1], images.float() / 255")
    if noise is None:
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=device).to(images.device)
    if noise.shape != images.shape:
        raise ValueError(f"noise {tuple(noise.shape)} must have the shape of images {tuple(images.shape)}")
    whole = torch.promote_types(images.dtype, torch.float32)  # 1 − ᾱ of an early step is nothing in half precision
    alpha_bar = alpha_bar_schedule(num_steps)[step].to(whole)
    noisy = alpha_bar.sqrt().to(images) * images + (1 - alpha_bar).sqrt().to(images) * noise
    return noisy.clamp(0, 1) if clamp else noisy
