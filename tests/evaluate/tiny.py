"""Tiny models of the real Hugging Face classes, random and saved as anybody would save theirs; and scripted ones."""

import hashlib
import string
from pathlib import Path

import numpy as np
import torch


class ScriptedEncoder:
    """A dual encoder that knows the answers: a text's feature is drawn from its hash, a picture's is that of its texts.

    ``answers`` holds (picture, texts) pairs.
    """

    kind = "dual encoder"
    batch_size = 16

    def __init__(self, answers, width=64):
        self.width = width
        self.texts = {image.tobytes(): texts for image, texts in answers}

    def text_features(self, texts):
        return torch.stack([self._feature(text) for text in texts])

    def image_features(self, images):
        return torch.stack([self.text_features(self.texts[image.tobytes()]).mean(0) for image in images])

    def _feature(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(self.width).astype(np.float32))


class ConstantEncoder:
    """A dual encoder that sees no difference between any two things."""

    kind = "dual encoder"
    batch_size = 16

    def text_features(self, texts):
        return torch.ones(len(texts), 8)

    image_features = text_features


def letters_tokenizer(longest=64, **special):
    """A CLIP tokenizer that spells."""
    from transformers import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in string.printable[:95]:
        for piece in (letter, f"{letter}</w>"):
            if letter.strip():
                vocabulary.setdefault(piece, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=longest, **special)


def save_clip(folder: Path) -> Path:
    """A random CLIP of 32 px."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = letters_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """A random BLIP with a matching head; its text tower has a layer 6, which AGLA explains."""
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

    tokenizer = letters_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {**size, "num_hidden_layers": 7, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"encoder_hidden_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "sep_token_id": 1}
    vision = {**size, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


class ScriptedAnswers:
    """A vision–language model that answers from a function of (pictures, prompt)."""

    kind = "vision-language"
    batch_size = 16

    def __init__(self, say):
        self.say = say

    def answer(self, requests, max_new_tokens=32):
        return [self.say(images, prompt) for images, prompt in requests]


def save_llava(folder: Path) -> Path:
    """A random LLaVA that sees 32 px as four tokens."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from foveal.zoo.nano.chat import build_processor, build_tokenizer

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = build_tokenizer(["yes no red dog", "Is there a dog in the image?"], 330, 512)
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=16)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    special["eos_token_id"] = tokenizer.eos_token_id
    text = LlamaConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=512, **special)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=4)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():  # stronger than usual, so that answers differ and do not hang on rounding
        weight.data.mul_(4)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    build_processor(images, tokenizer, 16).save_pretrained(folder)
    return folder


def save_stable_diffusion(folder: Path) -> Path:
    """A random pipeline of 16 px pictures from 8 × 8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = letters_tokenizer(longest=32)
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return folder
