"""A real image network and the words of a real language model, loaded once for all arms."""

from functools import cache
from typing import Any

from torch import Tensor

from foveal import zoo
from foveal.connect.sitta import class_name_pairs, whole_words


@cache
def parts() -> tuple[Any, Any, Tensor, Tensor]:
    """Vision model, tokenizer, word embeddings and which of them are whole words."""
    language, vision = zoo.load("smollm2"), zoo.load("efficientnet-lite0")
    embeddings = language.model.get_input_embeddings().weight.detach()
    return vision, language.tokenizer, embeddings, whole_words(language.tokenizer, len(embeddings))


def pairs(names: list[str]) -> list[list[int]]:
    """Tokens of the words of each name that are whole words."""
    return class_name_pairs(names, lambda text: parts()[1](text, add_special_tokens=False)["input_ids"], parts()[3])
