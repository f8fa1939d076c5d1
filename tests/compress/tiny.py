"""Tiny random instances of the real Hugging Face classes, and prompts for them.

The query and key projections are scaled up: a fresh model attends to everything alike, and every ranking would tie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor

LAYERS, VOCABULARY = 6, 96
PAD, EOS, IMAGE, VIDEO, VISION_START, VISION_END = 0, 1, 90, 91, 92, 93
SIDE, PATCH = 16, 4
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": EOS,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
GRIDS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


@dataclass(frozen=True)
class Kind:
    """One class of model: how to build it, and how to encode images of (height, width) for it."""

    name: str
    build: Callable[[], Any]
    encode: Callable[[list[tuple[int, int]], torch.Generator], dict[str, Any]]
    """(sizes of the images of one sample, random) -> arguments of get_image_features."""
    sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),)
    """Sizes of images that it tells apart."""
    multi_axis: bool = False

    @property
    def positions(self) -> str:
        return "original" if self.multi_axis else "compact"

    def model(self, seed: int = 0, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and ("language_model" in name or "text_model" in name or "lm_head" in name):
                parameter.data *= 12.0 if "q_proj" in name or "k_proj" in name else 4.0
        model.set_attn_implementation(attention)
        model.generation_config = hf.GenerationConfig(pad_token_id=PAD, eos_token_id=EOS, bos_token_id=2)
        return model.eval().to(dtype)

    def single(self, model: Any, *parts: Any, seed: int = 0) -> dict[str, Any]:
        """A prompt of text lengths (int) and images ((height, width)) in that order."""
        rng = torch.Generator().manual_seed(seed)
        images = [part for part in parts if isinstance(part, tuple)]
        inputs = self.encode(images, rng) if images else {}
        inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        counts = iter(image_counts(self.name, images))
        row: list[int] = []
        for part in parts:
            row += self.placeholders(next(counts)) if isinstance(part, tuple) else text(part, rng)
        ids = torch.tensor([row])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.multi_axis:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        return inputs

    def placeholders(self, count: int) -> list[int]:
        """What the prompt has in the place of an image."""
        return [VISION_START, *[IMAGE] * count, VISION_END] if self.multi_axis else [IMAGE] * count

    def singles(self, model: Any) -> list[dict[str, Any]]:
        """One image, two images of different sizes, none; texts of different lengths."""
        first, last = self.sizes[0], self.sizes[-1]
        middle = self.sizes[len(self.sizes) // 2]
        parts = [(3, first, 6), (2, last, 3, middle, 5), (4,)]
        return [self.single(model, *part, seed=seed) for seed, part in enumerate(parts)]


def join(kind: Kind, *prompts: dict[str, Any], side: str = "left") -> dict[str, Any]:
    """Prompts of one sample each, padded to one batch."""
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)
    pictures = [prompt["pixel_values"] for prompt in prompts if "pixel_values" in prompt]
    joined: dict[str, Any] = {}
    if pictures and pictures[0].ndim == 5:
        tiles = max(pixels.shape[1] for pixels in pictures)
        pictures = [torch.cat([p, p.new_zeros(len(p), tiles - p.shape[1], *p.shape[2:])], 1) for p in pictures]
        if kind.encode is tiled_by_sample:  # it wants a row of empty tiles for a sample without a picture
            full = iter(pictures)
            empty = torch.zeros_like(pictures[0])
            pictures = [next(full) if "pixel_values" in prompt else empty for prompt in prompts]
    if pictures:
        joined["pixel_values"] = torch.cat(pictures)
    for name in ("image_sizes", "image_grid_thw", "batch_num_images"):
        parts = [prompt[name] for prompt in prompts if name in prompt]
        if parts:
            joined[name] = torch.cat(parts)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
        rows = [prompt[name][0] for prompt in prompts if name in prompt]
        pads = [row.new_full((length - len(row),), -100 if name == "labels" else PAD) for row in rows]
        order = [(pad, row) if side == "left" else (row, pad) for pad, row in zip(pads, rows, strict=True)]
        if rows:
            joined[name] = torch.stack([torch.cat(pair) for pair in order])
    return joined


def extend(prompt: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The prompt followed by text, (B, T)."""
    more = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": torch.zeros_like(tokens),
    }
    return {name: torch.cat([part, more[name].to(part)], 1) if name in more else part for name, part in prompt.items()}


def text(length: int, rng: torch.Generator) -> list[int]:
    """Random words."""
    return torch.randint(3, IMAGE, (length,), generator=rng).tolist()


def image_counts(name: str, sizes: list[tuple[int, int]]) -> list[int]:
    """Image tokens of every image of a sample, as the processors count them."""
    grid = (SIDE // PATCH) ** 2
    if name == "llava":
        return [grid for _ in sizes]
    if name in ("llava_next", "llava_onevision"):
        return [anyres_count(h, w, name == "llava_next" or len(sizes) == 1) for h, w in sizes]
    return [grid // 4 * (h // SIDE) * (w // SIDE) for h, w in sizes]


def anyres_count(height: int, width: int, tiles: bool) -> int:
    """Base view, then the tiles' map without its padding, each row with a newline."""
    side = SIDE // PATCH
    if not tiles:
        return side * side + 1
    rows, columns = side * best(height, width)[0] // SIDE, side * best(height, width)[1] // SIDE
    if width / height > columns / rows:
        kept = int(round(height * columns / width, 7))
        rows -= 2 * ((rows - kept) // 2)
    else:
        kept = int(round(width * rows / height, 7))
        columns -= 2 * ((columns - kept) // 2)
    return side * side + rows * (columns + 1)


def best(height: int, width: int) -> tuple[int, int]:
    from transformers.image_processing_utils import select_best_resolution

    return select_best_resolution((height, width), GRIDS)


def noise(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


# Encoding -------------------------------------------------------------------------------------------------------------


def one_view(sizes, rng):
    return {"pixel_values": noise(rng, len(sizes), 3, SIDE, SIDE)}


def anyres(sizes, rng):
    tiles = [1 + best(*size)[0] * best(*size)[1] // SIDE**2 for size in sizes]
    return {
        "pixel_values": noise(rng, len(sizes), max(tiles), 3, SIDE, SIDE),
        "image_sizes": torch.tensor(sizes),
    }


def anyres_alone(sizes, rng):
    """LLaVA-OneVision cuts an image into tiles only where it is the one image of its sample."""
    return anyres(sizes, rng) | {"batch_num_images": torch.tensor([len(sizes)])}


def tiled(sizes, rng):
    return {"pixel_values": noise(rng, sum(h * w // SIDE**2 for h, w in sizes), 3, SIDE, SIDE)}


def tiled_by_sample(sizes, rng):
    return {"pixel_values": tiled(sizes, rng)["pixel_values"][None]}


def patches(sizes, rng):
    grids = torch.tensor([(1, h // PATCH, w // PATCH) for h, w in sizes])
    return {"pixel_values": noise(rng, int(grids.prod(1).sum()), 3 * 2 * PATCH**2), "image_grid_thw": grids}


# Models ---------------------------------------------------------------------------------------------------------------


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_next():
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=GRIDS,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_onevision():
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=GRIDS,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def internvl():
    tower = TOWER | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower), text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE
    )
    return hf.InternVLForConditionalGeneration(config)


def _qwen(config_class, model_class, vision):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = config_class(
        vision_config={"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, **vision},
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return model_class(config)


def qwen2_vl():
    vision = {"embed_dim": 16, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": TEXT["hidden_size"],
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, vision)


def idefics3():
    config = hf.Idefics3Config(
        vision_config=TOWER,
        text_config=hf.LlamaConfig(**TEXT),
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return hf.Idefics3ForConditionalGeneration(config)


def smolvlm():
    config = hf.SmolVLMConfig(
        vision_config=TOWER,
        text_config=hf.LlamaConfig(**TEXT),
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return hf.SmolVLMForConditionalGeneration(config)


WIDE = ((SIDE, SIDE), (SIDE, 2 * SIDE), (2 * SIDE, SIDE))
ODD = ((SIDE, SIDE), (SIDE, 28), (30, SIDE))

KINDS = [
    Kind("llava", llava, one_view),
    Kind("llava_next", llava_next, anyres, ODD),
    Kind("llava_onevision", llava_onevision, anyres_alone, ODD),
    Kind("internvl", internvl, tiled, WIDE),
    Kind("qwen2_vl", qwen2_vl, patches, WIDE, multi_axis=True),
    Kind("qwen2_5_vl", qwen2_5_vl, patches, WIDE, multi_axis=True),
    Kind("idefics3", idefics3, tiled_by_sample, WIDE),
    Kind("smolvlm", smolvlm, tiled_by_sample, WIDE),
]
BY_NAME = {kind.name: kind for kind in KINDS}
