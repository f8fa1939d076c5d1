"""UNITER in the matrix: one BERT over the words of a text and the patches of a picture, and no CLIP model at all.

Its regions are the patches, as pixels: a detector that knows the shapes would be a start that the others do not have.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.grain_data import Tokenize
from foveal.pretrain.uniter import (
    UNITERConfig,
    UNITERObjective,
    mask_tokens,
    replace_images,
    sample_region_mask,
)
from foveal.pretrain.uniter_model import INPUTS
from foveal.recipes import _listed as data
from foveal.recipes._clip_learners import Batch, Learner, caption_of, draws
from foveal.recipes._pretrain_matrix_data import READS, WIDTH
from foveal.recipes._pretrain_matrix_pairs import CLS, MASK, paired
from foveal.recipes._regions_training import MASKED_WORDS, started

TASKS = ("itm", "mlm", "itm", "mlm", "mrfr")
PART = 1500


class Uniter(Learner):
    """How well a picture and a text fit is what the head for matching says of both read together."""

    def __init__(self, model: Any, tokenize: Tokenize, steps: int) -> None:
        nn.Module.__init__(self)
        self.tokenize, self.steps = tokenize, steps
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        sizes = UNITERConfig(
            MASK + 1, WIDTH, 3, 4, 4 * WIDTH, READS + 1, dropout=0.0, img_dim=3 * data.PATCH**2, img_label_dim=2
        )
        self.reader = started(sizes)
        self.objective = UNITERObjective(self.reader)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        task, rng = TASKS[int(self.finished) % len(TASKS)], draws()
        both = self.both(batch["pixels"], [caption_of(sample) for sample in batch["samples"]])
        ids, words = both["input_ids"], both["text_mask"].clone()
        words[:, 0] = False
        if task == "itm":
            both = replace_images(both, generator=rng)
        elif task == "mlm":
            uniform, others = torch.rand(ids.shape, generator=rng), torch.randint(1, CLS, ids.shape, generator=rng)
            both["input_ids"], both["labels"] = mask_tokens(
                ids, words, MASK, uniform=uniform, random_ids=others, mask_prob=MASKED_WORDS
            )
        else:
            seen = both["region_mask"]
            both["masked_regions"] = sample_region_mask(seen, uniform=torch.rand(seen.shape, generator=rng))
        return {"loss": self.objective(task, both).loss}

    def after_step(self) -> None:
        self.finished += 1

    def both(self, pixels: Tensor, texts: Sequence[str], within: Tensor | None = None) -> dict[str, Tensor]:
        return paired(pixels, *self.tokenize(list(texts)), within)

    def hidden(self, both: Mapping[str, Tensor]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b p d"]]:
        """Of the words, the first token left out, and of the patches."""
        found, _ = self.reader.uniter(*(both[name] for name in INPUTS))
        length = both["input_ids"].shape[1]
        return found[:, 1:length], found[:, length:]

    def patch_tokens(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b p d"]:
        """Beside an empty text."""
        return self.hidden(self.both(pixels, [""] * len(pixels)))[1]

    def similarity(
        self, pixels: Float[Tensor, "b 3 s s"], texts: Sequence[str], within: Bool[Tensor, "b p"] | None = None
    ) -> Float[Tensor, "b n"]:
        return torch.cat(list(self._scores(pixels, texts, within))).view(len(pixels), -1)

    def _scores(self, pixels: Tensor, texts: Sequence[str], within: Tensor | None) -> Iterator[Tensor]:
        for pair in torch.cartesian_prod(torch.arange(len(pixels)), torch.arange(len(texts))).split(PART):
            row, column = pair.unbind(1)
            both = self.both(pixels[row], [texts[i] for i in column], None if within is None else within[row])
            pooled = self.reader.uniter(*(both[name] for name in INPUTS))[1]
            yield self.reader.itm_output(pooled).log_softmax(1)[:, 1]

    def heat(self, pixels: Float[Tensor, "b 3 s s"], phrases: Sequence[str]) -> Float[Tensor, "b m p"]:
        """Cosine of a patch with the words, mean over the words, when the picture is read with the phrase."""
        many = len(phrases) // len(pixels)
        both = self.both(pixels.repeat_interleave(many, 0), phrases)
        words, patches = self.hidden(both)
        real = both["text_mask"][:, 1:, None]
        similar = (unit_rows(words) @ unit_rows(patches).mT * real).sum(1) / real.sum(1).clamp(min=1)
        return similar.unflatten(0, (len(pixels), many))
