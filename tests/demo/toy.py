"""A random LLaVA that sees 32 px as sixteen tokens, and a matcher of its size: the demo's models in a second."""

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from foveal.demo.host import Host
from foveal.zoo.nano.chat import build_processor, build_tokenizer

TEXTS = ["yes no red dog two", "Is there a dog in the image?", "Please describe this image in detail."]


def toy_host():
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    tokenizer = build_tokenizer(TEXTS, 330, 512)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    text = LlamaConfig(
        **size,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        **{name: getattr(tokenizer, name) for name in names},
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=32, patch_size=8),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Llava(config).eval()
        for weight in model.parameters():  # stronger than usual, so that answers differ from picture to picture
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.25)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return Host(model, build_processor(images, tokenizer, 8))
