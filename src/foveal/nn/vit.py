"""Vision transformer: patches, a class token, optional registers, positions that stretch to other image sizes.

    tokens = ln_pre([class; registers; patches + positions])  →  transformer  →  ln_post  →  (class token @ proj)

Parameter names are those of OpenAI's CLIP release. Masked methods pass ``keep``: other patches never enter a layer.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929.
Registers: Darcet et al., Vision Transformers Need Registers, ICLR 2024, arXiv 2309.16588.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.transformer import Transformer


def interpolate_positions(
    positions: Float[Tensor, "one_plus_n d"], grid: tuple[int, int]
) -> Float[Tensor, "one_plus_m d"]:
    """Positions of [class; square grid of patches, row by row] for another grid (rows, columns), bicubic."""
    side = round((len(positions) - 1) ** 0.5)
    if side * side != len(positions) - 1:
        raise ValueError(f"positions has {len(positions)} rows: must be 1 + a square number")
    if grid == (side, side):
        return positions
    image = positions[1:].T.unflatten(1, (side, side))[None].float()
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], image[0].flatten(1).T.to(positions.dtype)])


class VisionTransformer(nn.Module):
    """Images -> one feature each (`forward`), or one per token (`tokens`, `hidden_states`).

    Args:
        image_size, patch_size: pixels; ``image_size`` is the size for which positions are learned.
        output_dim: width of the feature after ``proj``; None leaves out ``proj``.
        registers: extra tokens without position; they stand between class token and patches.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        *,
        output_dim: int | None = None,
        registers: int = 0,
        activation: str = "gelu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size={patch_size}: must be at least 1 and divide image_size={image_size}")
        self.image_size, self.patch_size, self.prefix = image_size, patch_size, 1 + registers
        std = width**-0.5
        self.class_embedding = nn.Parameter(std * torch.randn(width))
        self.positional_embedding = nn.Parameter(std * torch.randn(1 + (image_size // patch_size) ** 2, width))
        self.registers = nn.Parameter(std * torch.randn(registers, width)) if registers else None
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation=activation, drop_path=drop_path)
        self.ln_post = nn.LayerNorm(width)
        self.proj = None if output_dim is None else nn.Parameter(std * torch.randn(width, output_dim))

    def embed(
        self, images: Float[Tensor, "b 3 h w"], keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b prefix_plus_k d"]:
        """Input of the transformer: [class; registers; patches row by row], only the patches ``keep`` if given.

        ``keep[i]`` are the indices of the patches that image i shows, in the order in which they are wanted.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(size % self.patch_size for size in images.shape[2:]):
            wanted = f"(B, 3, H, W) with sides that patch_size={self.patch_size} divides"
            raise ValueError(f"images {tuple(images.shape)} must be {wanted}")
        patches = self.conv1(images.to(self.conv1.weight.dtype))
        positions = interpolate_positions(self.positional_embedding, tuple(patches.shape[2:]))
        patches = patches.flatten(2).mT + positions[1:]
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[2]))
        prefix = self.class_embedding[None] + positions[:1]
        if self.registers is not None:
            prefix = torch.cat([prefix, self.registers])
        return self.ln_pre(torch.cat([prefix.expand(len(images), -1, -1), patches], 1))

    def hidden_states(
        self, images: Float[Tensor, "b 3 h w"], keep: Int[Tensor, "b k"] | None = None
    ) -> list[Float[Tensor, "b prefix_plus_k d"]]:
        """Input of the transformer and output of every layer, without ``ln_post``; patches start at ``self.prefix``."""
        return self.transformer.hidden_states(self.embed(images, keep))

    def tokens(
        self, images: Float[Tensor, "b 3 h w"], keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b prefix_plus_k d"]:
        """All tokens after the last layer and ``ln_post``; patches start at ``self.prefix``."""
        return self.ln_post(self.transformer(self.embed(images, keep)))

    def forward(self, images: Float[Tensor, "b 3 h w"], keep: Int[Tensor, "b k"] | None = None) -> Float[Tensor, "b e"]:
        """The class token's feature, not normalised."""
        pooled = self.ln_post(self.transformer(self.embed(images, keep))[:, 0])
        return pooled if self.proj is None else pooled @ self.proj
