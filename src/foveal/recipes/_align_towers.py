"""ALIGN in small: strided convolutions, and a text transformer that is read at its first token."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.nn.text import TextTransformer
from foveal.pretrain.align import ALIGNModel, ALIGNObjective
from foveal.train import FitConfig, fit

LONGEST, WIDTH, STEPS = 40, 96, 200


class FirstToken(TextTransformer):
    """Called as BERT is; every token sees every other."""

    def forward(
        self, input_ids: Int[Tensor, "b l"], attention_mask: Shaped[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        return self.tokens(input_ids, attention_mask)


class SmallALIGN(ALIGNModel):
    """For pictures of 32 px. The temperature starts at 0.07: from 1 it would not arrive in some hundred steps."""

    def __init__(self, words: WordIds, smoothing: float) -> None:
        widths = (3, 32, 64, 64, WIDTH)
        blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU()) for a, b in pairwise(widths)]
        text = FirstToken(LONGEST, len(words), WIDTH, 2, 4, causal=False)
        super().__init__(nn.Sequential(*blocks), text, ALIGNObjective(WIDTH, WIDTH, 0.07, smoothing))
        self.words = words

    def read(self, texts: Sequence[str]) -> Int[Tensor, "n l"]:
        """Ids with the end token in front, too: that is where this tower is read."""
        ids = torch.from_numpy(self.words.encode(texts))
        return torch.cat([torch.full((len(ids), 1), self.words.end), ids], 1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        ids = self.read(texts)
        return self.encode_text(ids, ids > 0)


def pixels(scenes: Sequence[world.Scene]) -> Float[Tensor, "n 3 32 32"]:
    return to_tensor(world.images_of(scenes, world.WorldConfig(size=32)))


def trained(
    run: Run, images: Float[Tensor, "n 3 32 32"], captions: Sequence[str], smoothing: float, words: WordIds
) -> SmallALIGN:
    model = run.build(SmallALIGN, words, smoothing)
    ids = model.read(captions)
    data = TensorDataset(images, ids, (ids > 0).long())
    config = FitConfig(lr=1e-3, batch_size=64, after_step=lambda model: model.objective.clamp_())
    fit(model, data, steps=run.steps(STEPS), loss=lambda model, b: model(*b).loss, config=config, on=run)
    return model
