"""Tiny random instances of the real classes, and batches of left-padded prompts with pictures for them."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers

VOCABULARY, IMAGE, VIDEO, PAD, EOS, BOS = 64, 60, 61, 0, 62, 63
TAGS = (58, 59)
"""Around each picture of InternVL and Qwen, which tell two pictures apart by them."""
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PINPOINTS = [[32, 64], [64, 32]]
SIZES = torch.tensor([[20, 40], [40, 18], [32, 64]])
"""Height and width of the pictures of models that tile."""


@dataclass(frozen=True)
class Prompt:
    """Token ids around pictures, which are named by number."""

    before: tuple[int, ...]
    pictures: tuple[int, ...]
    after: tuple[int, ...]


PROMPTS = (
    Prompt((BOS, 5), (0,), (7, 8, 9)),
    Prompt((BOS, 11), (1, 2), (12, 13, 14, 15)),
)
"""The second holds two pictures next to each other; in a batch the first is padded."""

CONFIGS: dict[str, Any] = {
    "llava": lambda: transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=16,
    ),
    "llava-next": lambda: transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    ),
    "llava-onevision": lambda: transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    ),
    "internvl": lambda: transformers.InternVLConfig(
        vision_config={"model_type": "internvl_vision", **VISION},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    ),
    "qwen2-vl": lambda: transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8},
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=TAGS[0],
        vision_end_token_id=TAGS[1],
    ),
    "qwen2.5-vl": lambda: transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=TAGS[0],
        vision_end_token_id=TAGS[1],
    ),
    "smolvlm": lambda: transformers.SmolVLMConfig(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=2,
    ),
    "idefics3": lambda: transformers.Idefics3Config(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=2,
    ),
}


TILED = ("llava-next", "llava-onevision")
QWEN = ("qwen2-vl", "qwen2.5-vl")
GRIDS = ((1, 4, 4), (1, 2, 4), (1, 6, 2))
"""Patches of each picture in Qwen's models; 2 × 2 of them are a token."""


@cache
def model(kind: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = transformers.AutoModelForImageTextToText.from_config(CONFIGS[kind](), attn_implementation=attention)
        for parameter in built.parameters():
            if parameter.ndim > 1:  # with the usual 0.02 every answer is nearly the same
                torch.nn.init.normal_(parameter, std=0.25)
    return built.eval().to(dtype)


def batch(kind: str, prompts: tuple[Prompt, ...] = PROMPTS) -> dict[str, torch.Tensor]:
    """What the model's processor would give for these prompts."""
    pictures = [number for prompt in prompts for number in prompt.pictures]
    inputs = _pictures(kind, prompts, pictures)
    lengths = dict(zip(pictures, _tokens(kind, inputs, len(pictures)), strict=True))
    around = ([TAGS[0]], [TAGS[1]]) if kind in (*QWEN, "internvl") else ([], [])
    rows = []
    for prompt in prompts:
        row = list(prompt.before)
        for number in prompt.pictures:
            row += [*around[0], *([IMAGE] * lengths[number]), *around[1]]
        rows.append([*row, *prompt.after])
    longest = max(map(len, rows))
    inputs["input_ids"] = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    inputs["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    if kind in QWEN:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs


def _pictures(kind: str, prompts: tuple[Prompt, ...], numbers: list[int]) -> dict[str, torch.Tensor]:
    if kind in QWEN:
        patches = [_noise(number, GRIDS[number][1] * GRIDS[number][2], 3 * 2 * 8 * 8) for number in numbers]
        grids = torch.tensor([GRIDS[number] for number in numbers])
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids}
    if kind in ("smolvlm", "idefics3"):
        most = max(len(prompt.pictures) for prompt in prompts)
        pixels = torch.zeros(len(prompts), most, 3, 32, 32)  # zeros are no picture
        for row, prompt in enumerate(prompts):
            for place, number in enumerate(prompt.pictures):
                pixels[row, place] = _noise(number, 3, 32, 32)
        return {"pixel_values": pixels}
    if kind in TILED:
        inputs = {"pixel_values": torch.stack([_noise(number, 3, 3, 32, 32) for number in numbers])}
        inputs["image_sizes"] = SIZES[numbers]
        if kind == "llava-onevision":
            inputs["batch_num_images"] = torch.tensor([len(prompt.pictures) for prompt in prompts])
        return inputs
    return {"pixel_values": torch.stack([_noise(number, 3, 32, 32) for number in numbers])}


def _tokens(kind: str, inputs: dict[str, torch.Tensor], pictures: int) -> list[int]:
    """Image tokens of each picture."""
    if kind in TILED:
        features = model(kind).model.get_image_features(**inputs, return_dict=True).pooler_output
        return [len(feature) for feature in features]
    if kind in QWEN:
        return (inputs["image_grid_thw"].prod(-1) // 4).tolist()
    return [16 if kind == "llava" else 4] * pictures


def _noise(number: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
