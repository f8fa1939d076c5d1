"""The two towers of CLIP with the parameter names of OpenAI's release, and the read-out of its ResNets.

Released ViT checkpoints load with ``CLIPModel(...).load_state_dict(weights)`` once the three integers that they carry
beside the weights (input_resolution, context_length, vocab_size) are dropped.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.attention import attention
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPModel(TextTransformer):
    """Images and texts -> features of width ``embed_dim``, not normalised.

    The release keeps the text tower at the top level and the image tower under ``visual``; that is why this *is* a
    text transformer. Sizes of ViT-B/32: 512, 224, 32, 768, 12, 12 and 77, 49408, 512, 12, 8.

    ``logit_scale`` is the logarithm of the multiplier, as the release has it.
    """

    def __init__(
        self,
        embed_dim: int,
        image_size: int,
        patch_size: int,
        vision_width: int,
        vision_layers: int,
        vision_heads: int,
        context_length: int,
        vocab_size: int,
        text_width: int,
        text_layers: int,
        text_heads: int,
    ) -> None:
        text = (context_length, vocab_size, text_width, text_layers, text_heads)
        super().__init__(*text, output_dim=embed_dim, activation="quick_gelu")
        vision = (image_size, patch_size, vision_width, vision_layers, vision_heads)
        self.visual = VisionTransformer(*vision, output_dim=embed_dim, activation="quick_gelu")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixel_values: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b e"]:
        """Pixels in [0, 1], less `CLIP_MEAN`, over `CLIP_STD`. ValueError for another size than ``image_size``."""
        size = self.visual.image_size
        if pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)} must be (B, 3, {size}, {size}): resize the images"
            )
        return self.visual(pixel_values)

    def encode_text(self, token_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b e"]:
        """The feature at the first place of each row's largest id, the end token.

        ValueError for too long a text, and for an id outside the vocabulary.
        """
        size = self.token_embedding.num_embeddings
        outside = (token_ids < 0) | (token_ids >= size)
        if bool(outside.any()):
            raise ValueError(f"token_ids hold {int(token_ids[outside][0])}: must be in [0, vocab_size={size})")
        return self(token_ids)


class AttentionPool2d(nn.Module):
    """Read-out of CLIP's ResNets: the mean of all positions looks, with several heads, at itself and every position.

    Args:
        spatial: rows (= columns) of the feature map.
        width: its channels.
    """

    def __init__(self, spatial: int, width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        if spatial < 1 or heads < 1 or width < 1 or width % heads:
            raise ValueError(f"spatial={spatial}, heads={heads}: must be at least 1, and heads divide width={width}")
        self.spatial, self.width, self.heads = spatial, width, heads
        self.positional_embedding = nn.Parameter(torch.randn(spatial**2 + 1, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        if feature_map.shape[1:] != (self.width, self.spatial, self.spatial):
            wanted = f"(B, {self.width}, {self.spatial}, {self.spatial})"
            raise ValueError(f"feature_map {tuple(feature_map.shape)} must be {wanted}")
        positions = feature_map.flatten(2).mT
        tokens = torch.cat([positions.mean(1, keepdim=True), positions], 1) + self.positional_embedding
        parts = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.c_proj(attention(query, key, value)[:, :, 0].flatten(1))
