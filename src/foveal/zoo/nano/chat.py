"""How nano-llava reads: its tokenizer, its chat template and its processor.

The prompt is LLaVA-1.5's: ``<s>USER: <image>\\nWhat is it? ASSISTANT: a dog</s>``, the next turn right after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:"
WORDS = r" ?\p{L}+| ?\d| ?[^\s\p{L}\d]+|\s+"
"""Words, digits one by one, signs and blanks; one blank goes with what comes after it."""

TEMPLATE = """
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}{{ 'ASSISTANT: ' }}
  {%- elif message.role == 'user' -%}{{ 'USER: ' }}
  {%- endif -%}
  {%- if message.content is string -%}{{ message.content }}
  {%- else -%}
    {%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
    {%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
  {%- endif -%}
  {{- '</s>' if message.role == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
"""Pictures of a turn come before its text, whatever their order. A system message stands in front without a name."""


def build_tokenizer(texts: Iterable[str], size: int, length: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of at most ``size`` entries from the words of ``texts``; any text can be written in it.

    Args:
        texts: prompts and answers.
        size: of the vocabulary, special tokens and the 256 bytes included.
        length: tokens that the model takes.
    """
    special = [
        *(PAD, BOS, EOS),
        AddedToken(IMAGE, special=True, normalized=False),
        AddedToken(USER, special=True, normalized=False, rstrip=True),
        AddedToken(ASSISTANT, special=True, normalized=False, lstrip=True),
    ]
    tokenizer = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A $B", begin)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",  # for generation
        model_max_length=length,
        extra_special_tokens={"image_token": IMAGE},
    )


def build_processor(
    images: Any, tokenizer: PreTrainedTokenizerFast, patch: int, template: str = TEMPLATE
) -> LlavaProcessor:
    """``images``: the image processor of the vision tower, which has square patches of ``patch`` pixels and a CLS."""
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the CLS token, which "default" takes away again
        chat_template=template.strip(),
    )
