"""How the host of `lrs` is trained, and the region focus module distilled from it.

First the CLIP tower learns to name the colours of what lies on each patch; on the frozen tower the projector learns to
put them into words, patch by patch; then it and the language model learn to answer questions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import LlavaForConditionalGeneration

from foveal.compress.lrs import RegionFocusModule, attention_distillation_loss, language_model_logits
from foveal.data.word_ids import UNKNOWN
from foveal.lab import Run
from foveal.recipes._large import COLOURS, words
from foveal.recipes._large_lessons import FIRST, Lessons, Seen
from foveal.recipes._large_model import WIDTH, answer_loss, asking, both, build, patch_features, sequence
from foveal.recipes._large_tiles import LARGE, SMALL, Drawn, drawn
from foveal.train import FitConfig, fit

LAYER_IDS = (2,)
"""The layer of the language model whose attention the module learns; its copies are this one and the one before."""
CROWDED, PICTURES, ROWS = 800, 800, 16
TOWER_STEPS, ALIGN_STEPS, STEPS, FOCUS_STEPS = 200, 100, 1500, 150


class Host(NamedTuple):
    model: LlavaForConditionalGeneration
    levels: Seen
    """Pictures that it has learnt from."""


def host(run: Run) -> Host:
    """Trained on pictures of its own."""
    model, crowded, large = run.build(build), drawn(run, CROWDED, SMALL), drawn(run, PICTURES, LARGE)
    tower = model.model.vision_tower
    train_tower(run, tower, crowded)
    tower.requires_grad_(False)
    with torch.no_grad():
        levels = Seen(large, torch.stack([patch_features(tower, tiles) for tiles in large.tiles]))
    align(run, model, levels)
    lessons = Lessons(levels, run.steps(STEPS), ROWS, run.seed)
    config = FitConfig(lr=1e-2, optimizer="muon")
    fit(model, lessons, steps=lessons.steps, loss=answer_loss, config=config, on=run)
    return Host(model.requires_grad_(False), levels)


def train_tower(run: Run, tower: nn.Module, seen: Drawn) -> None:
    """With a head for the colours of square and circle on each patch."""
    head = run.build(nn.Linear, WIDTH, 2 * (len(COLOURS) + 1))

    def loss(model: nn.ModuleList, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        named = model[1](patch_features(model[0], batch[0])).chunk(2, -1)
        return both(named[0], batch[1], 0) + both(named[1], batch[2], 0)

    data = TensorDataset(*(part.flatten(0, 1) for part in (seen.tiles, *seen.named())))
    config = FitConfig(lr=6e-3, optimizer="muon")
    fit(nn.ModuleList([tower, head]), data, steps=run.steps(TOWER_STEPS), loss=loss, config=config, on=run)


def align(run: Run, model: LlavaForConditionalGeneration, seen: Seen) -> None:
    """A projected patch resembles the word of its square's colour, and the output layer reads its circle's from it."""
    ids = torch.tensor([UNKNOWN, *(word for colour in COLOURS for word in words(colour))])

    def loss(model: LlavaForConditionalGeneration, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        states = F.normalize(model.model.multi_modal_projector(batch[0]), dim=-1) * WIDTH**0.5
        tables: tuple[Any, Any] = (model.get_input_embeddings().weight, model.lm_head.weight)
        said = [states @ F.normalize(table, dim=-1).T for table in tables]
        return both(said[0], batch[1], UNKNOWN) + both(said[1], batch[2], UNKNOWN)

    data = TensorDataset(seen.features, *(ids[numbers] for numbers in seen.drawn.named()))
    config = FitConfig(lr=5e-3, batch_size=32)
    fit(model, data, steps=run.steps(ALIGN_STEPS), loss=loss, config=config, on=run)


def region_focus(run: Run, distilled: bool) -> RegionFocusModule:
    """Copied from the language model; then taught its attention on levels of pictures."""
    model, levels = run.shared(host)
    module = RegionFocusModule.from_language_model(model, LAYER_IDS)
    if distilled:
        lessons = Lessons(levels, run.steps(FOCUS_STEPS), ROWS, 100 + run.seed, single=False)

        def loss(module: RegionFocusModule, lesson: dict[str, Tensor]) -> Tensor:
            local = (FIRST, FIRST + lesson["order"].shape[1])
            asked = (sequence(model, lesson), asking(lesson), local, lesson["positions"])
            return attention_distillation_loss(module(*asked), language_model_logits(model, LAYER_IDS, *asked))

        fit(module, lessons, steps=lessons.steps, loss=loss, config=FitConfig(lr=1e-3), on=run)
    return module
