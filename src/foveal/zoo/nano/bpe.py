"""CLIP's kind of byte-pair encoding with the merges of other texts, the same at every run.

`tokenizers` numbers the symbols that end a word ("g</w>") in the order of a hash map, and so breaks ties between pairs
differently at every run. Here each of them is one private character while the merges are found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

END = "</w>"
PRIVATE = 0xE000  # of Unicode's private use area, which no text has
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def clip_tokenizer(texts: Iterable[str], size: int, longest: int) -> CLIPTokenizer:
    """A tokenizer of at most ``size`` entries that cuts texts at ``longest`` tokens.

    Raises:
        ValueError: when ``size`` leaves no room for the alphabet: every byte, inside and at the end of a word.
    """
    inside = sorted(pre_tokenizers.ByteLevel.alphabet())
    last = {symbol: chr(PRIVATE + i) for i, symbol in enumerate(inside)}
    symbols = [*inside, *last.values()]
    if size < len(symbols) + len(SPECIAL):
        raise ValueError(f"size={size}: must be at least {len(symbols) + len(SPECIAL)}, the alphabet")

    reader = CLIPTokenizer().backend_tokenizer

    def marked(text: str) -> str:
        words = reader.pre_tokenizer.pre_tokenize_str(reader.normalizer.normalize_str(text))
        return " ".join(word[:-1] + last[word[-1]] for word, _ in words)

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size - len(SPECIAL), initial_alphabet=symbols, show_progress=False)
    bpe.train_from_iterator(map(marked, texts), trainer)

    spelled = {mark: symbol + END for symbol, mark in last.items()}

    def plain(token: str) -> str:
        return "".join(spelled.get(symbol, symbol) for symbol in token)

    learned = json.loads(bpe.to_str())["model"]
    vocabulary = {plain(token): number for token, number in learned["vocab"].items()}
    vocabulary |= {special: len(vocabulary) + i for i, special in enumerate(SPECIAL)}
    merges: Any = [(plain(left), plain(right)) for left, right in learned["merges"]]  # annotated too narrowly there
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=longest)
