"""Attention in windows, and the second pass on a rolled image that takes away what the windows' edges do to features.

The map is cut into a grid of K × K windows, K fixed whatever its size. Positions P belong to places, not to patches:

    SWL(X) = ½ · enc(X + P) + ½ · unroll( enc( roll(X) + P ) )          roll by (−s, +s) along (H, W)

Nothing is masked where the image wraps around, and the final norm comes after the average. Shifted-window learning:
Kim, Angelova, Kuo (DITO), ECCV 2024, arXiv 2310.00161, section 3.3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn.transformer import Block
from foveal.pretrain.base_towers import vision_tokens


def window_partition(x: Float[Tensor, "b h w d"], grid: int) -> Float[Tensor, "k2b n d"]:
    """A map as ``grid``² windows of (H/grid)·(W/grid) tokens; windows row by row outermost, the batch within each.

    Raises ValueError when ``grid`` does not divide both sides.
    """
    batch, height, width, dim = _map(x, "x")
    _check_grid(grid, height, width)
    parts = x.reshape(batch, grid, height // grid, grid, width // grid, dim)
    return parts.permute(1, 3, 0, 2, 4, 5).reshape(grid * grid * batch, height * width // grid**2, dim)


def window_merge(w: Float[Tensor, "k2b n d"], grid: int, height: int, width: int) -> Float[Tensor, "b h w d"]:
    """The inverse of `window_partition`. Raises ValueError for windows that do not make up such a map."""
    _check_grid(grid, height, width)
    if w.ndim != 3 or len(w) % grid**2 or w.shape[1] * grid**2 != height * width:
        raise ValueError(f"w {tuple(w.shape)} must be (B·{grid}², {height * width // grid**2}, D)")
    parts = w.reshape(grid, grid, len(w) // grid**2, height // grid, width // grid, w.shape[2])
    return parts.permute(2, 0, 3, 1, 4, 5).reshape(-1, height, width, w.shape[2])


def shifted_window_features(
    encode: Callable[[Float[Tensor, "b h w d"]], Float[Tensor, "b h w d"]],
    patches: Float[Tensor, "b h w d"],
    pos: Float[Tensor, "h w d"],
    shift: int,
) -> Float[Tensor, "b h w d"]:
    """The mean of a plain and a rolled pass, both in the places of ``patches``; ``shift=0`` is the plain pass alone.

    Args:
        encode: the backbone after positions and before its final norm; keeps the shape.
        pos: positions, added after the roll and never rolled.
        shift: s, in patches; half a window is usual.

    Raises ValueError for positions of another shape, a negative shift, and an ``encode`` that changes the shape.
    """
    if pos.shape != _map(patches, "patches")[1:]:
        raise ValueError(f"pos {tuple(pos.shape)} must be (H, W, D) = {tuple(patches.shape[1:])}")
    if shift < 0:
        raise ValueError(f"shift={shift}: must be at least 0")
    plain = encode(patches + pos)
    if plain.shape != patches.shape:
        raise ValueError(f"encode returned {tuple(plain.shape)}: must keep the shape {tuple(patches.shape)}")
    if shift == 0:
        return plain
    rolled = encode(patches.roll((-shift, shift), (1, 2)) + pos).roll((shift, -shift), (1, 2))
    return (plain + rolled) / 2


class WindowViT(nn.Module):
    """A vision transformer without class token, in windows but for a few layers: images -> a map of features.

    Args:
        image_size, patch_size: pixels; ``image_size`` is the size for which positions are learned.
        grid: windows along each side, whatever the size of the image.
        global_layers: which layers look at everything; default: every third one, as in ViT-B (of the frozen VLM: the
            last one alone). Negative numbers count from the end.
        shift: s of `shifted_window_features`, in patches; 0 is a plain pass.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        *,
        grid: int = 4,
        global_layers: Sequence[int] | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size={patch_size}: must be at least 1 and divide image_size={image_size}")
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1")
        chosen = range(2, layers, 3) if global_layers is None else global_layers
        if any(not -layers <= layer < layers for layer in chosen):
            raise ValueError(f"global_layers={tuple(chosen)}: must be among the {layers} layers")
        if grid < 1 or shift < 0:
            raise ValueError(f"grid={grid}, shift={shift}: must be at least 1 and at least 0")
        self.patch_size, self.grid, self.shift = patch_size, grid, shift
        self.global_layers = frozenset(layer % layers for layer in chosen)
        side = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(side, side, width))
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w d"]:
        """Features of all patches. ValueError for images that patches or windows do not divide."""
        if images.ndim != 4 or images.shape[1] != 3 or any(size % self.patch_size for size in images.shape[2:]):
            wanted = f"(B, 3, H, W) with sides that patch_size={self.patch_size} divides"
            raise ValueError(f"images {tuple(images.shape)} must be {wanted}")
        patches = self.conv1(images).permute(0, 2, 3, 1)
        return self.ln_post(shifted_window_features(self._encode, patches, self._positions(patches), self.shift))

    def _positions(self, patches: Float[Tensor, "b h w d"]) -> Float[Tensor, "h w d"]:
        size = patches.shape[1:3]
        if size == self.positional_embedding.shape[:2]:
            return self.positional_embedding
        image = self.positional_embedding.permute(2, 0, 1)[None]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)

    def _encode(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        height, width = x.shape[1:3]
        grid = 1
        tokens = x.flatten(1, 2)
        for layer, block in enumerate(self.resblocks):
            wanted = 1 if layer in self.global_layers else self.grid
            if wanted != grid:  # neighbouring layers of one kind share the cut
                tokens = window_partition(window_merge(tokens, grid, height, width), wanted)
                grid = wanted
            tokens = block(tokens)
        return window_merge(tokens, grid, height, width)


def patch_map(backbone: nn.Module, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d h w"]:
    """The features of a backbone as a map.

    Args:
        backbone: returns (B, H, W, D), as `WindowViT` does, or tokens (see `vision_tokens`), of which those before the
            patches (class token, registers) are dropped.

    Raises ValueError when the tokens cannot be laid out in the shape of the image.
    """
    if not hasattr(backbone, "config"):
        output: Any = backbone(images)
        if isinstance(output, Tensor) and output.ndim == 4:
            return output.permute(0, 3, 1, 2)
        raise ValueError("backbone must return a map (B, H, W, D), or be a vision model of transformers")
    tokens = vision_tokens(backbone, images)
    config: Any = backbone.config
    height, width = (size // config.patch_size for size in images.shape[2:])
    extra = tokens.shape[1] - height * width
    if extra < 0:
        raise ValueError(f"backbone returned {tokens.shape[1]} tokens for {height} × {width} patches")
    return tokens[:, extra:].mT.unflatten(2, (height, width))


def _map(x: Tensor, name: str) -> torch.Size:
    if x.ndim != 4:
        raise ValueError(f"{name} {tuple(x.shape)} must be (B, H, W, D)")
    return x.shape


def _check_grid(grid: int, height: int, width: int) -> None:
    if grid < 1 or height % grid or width % grid:
        raise ValueError(f"grid={grid}: must be at least 1 and divide both sides of the {height} × {width} map")
