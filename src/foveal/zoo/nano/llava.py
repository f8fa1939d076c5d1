"""nano-llava: a ``LlavaForConditionalGeneration`` of six million parameters that looks through nano-clip's eyes.

Trained in the two stages of LLaVA (Liu et al., arXiv 2304.08485), with two departures. Its language model starts from
nothing, so that the first stage, on captions, trains it together with the projector. And the second stage, on every
kind of exchange, trains the vision tower too, as LLaVA-NeXT does: what a contrastive loss has taught the tower says
little of where in the picture a patch is, which boxes and relations are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from foveal.train import FitConfig, FitReport, fit
from foveal.zoo import nano
from foveal.zoo.nano.chat import build_processor, build_tokenizer
from foveal.zoo.nano.conversations import TASKS, clip_exchanges, exchanges
from foveal.zoo.nano.films import DrawnFilms
from foveal.zoo.nano.lessons import Lessons, Writer, branch_mask
from foveal.zoo.nano.scenes import LLAVA_LESSONS, LLAVA_WORLD, DrawnScenes
from foveal.zoo.nano.training import TrainingRecord, check_destination, digest, loss_curve, publish_checkpoint
from foveal.zoo.quiet import quiet_loading

ANSWER_TOKENS = 100
"""Longest answer by default; a long caption has some 60."""
DATA = (
    "Scenes and short clips of foveal's procedural world (base nouns in a long tail, among their natural companions; "
    "no novel noun is drawn or named), with captions, questions and answers, regions and boxes; Twemoji sprites."
)
LIMITS = (
    "It knows drawn scenes, not photographs, and only English words of this world. It names things that usually go "
    "with what it sees, and rare nouns and small things are its weakest. Noise, inverted, grey, sepia and mosaic "
    "pictures were never seen."
)


@dataclass(frozen=True)
class Stage:
    """``tasks``: a key of `TASKS`; ``tower``: whether the vision tower learns too.

    ``wide``: in the world of all base nouns, or else in the clearer one that nano-llava is examined on.
    """

    name: str
    steps: int
    lr: float
    tasks: str = "everything"
    tower: bool = False
    wide: bool = True


@dataclass(frozen=True)
class LlavaTraining:
    """All that shapes the weights, nano-clip aside."""

    scenes: int = 36_000
    films: int = 1500
    stages: tuple[Stage, ...] = (
        Stage("align", 200, 3e-3, "captions"),
        Stage("instruct", 1300, 2e-3, tower=True),
        Stage("answer", 900, 2e-3, "questions", tower=True, wide=False),
        Stage("practise", 1500, 2e-3, "practice", tower=True, wide=False),
        Stage("revise", 1000, 2e-3, "revision", tower=True, wide=False),
    )
    clear_scenes: int = 20_800
    rows: int = 16
    budget: int = 200
    weight_decay: float = 0.05
    feature_layer: int = -2
    width: int = 192
    hidden: int = 512
    layers: int = 6
    heads: int = 4
    """Fewer and wider ones than usual: on a CPU attention costs by the number of heads."""
    vocabulary: int = 2000
    positions: int = 1024
    seed: int = 0


SMOKE = LlavaTraining(
    scenes=12,
    films=3,
    stages=(
        Stage("align", 1, 1e-3, "captions"),
        Stage("instruct", 10, 1e-3, tower=True),
        Stage("answer", 1, 1e-3, "questions", tower=True, wide=False),
        Stage("practise", 1, 1e-3, "practice", tower=True, wide=False),
        Stage("revise", 1, 1e-3, "revision", tower=True, wide=False),
    ),
    clear_scenes=12,
    rows=2,
    budget=60,
    width=32,
    hidden=64,
    layers=2,
    heads=2,
)


def train(out: Path, work: Path, smoke: bool = False) -> Path:
    """Train nano-llava on the shipped nano-clip and publish it in ``out``; a killed run goes on from ``work``.

    Raises FileNotFoundError when there is no nano-clip, and ValueError when ``out`` holds anything but a checkpoint.
    """
    check_destination(out)
    settings = SMOKE if smoke else LlavaTraining()
    clip = nano.folder("nano-clip")
    scenes = DrawnScenes(LLAVA_LESSONS, settings.seed, settings.scenes)
    films = DrawnFilms(LLAVA_LESSONS, settings.seed, settings.films)
    clear = DrawnScenes(LLAVA_WORLD, settings.seed, settings.clear_scenes)
    model, processor = build(clip, corpus(scenes, films), settings)
    work = work / digest(clip)[:16]  # on another nano-clip it is another run
    course = Course(model, Writer(processor, model.config.image_seq_length), scenes, clear, films, settings, work)
    reports = {f"{stage.name} loss": course.take(number) for number, stage in enumerate(settings.stages)}
    curves = {name: loss_curve(report.losses) for name, report in reports.items()}
    seconds = sum(report.seconds_in_all for report in reports.values())
    config = {**asdict(settings), "nano-clip": digest(clip)}
    record = TrainingRecord("nano-llava", "foveal train nano-llava", config, DATA, LIMITS, seconds, curves)

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)

    return publish_checkpoint(out, save, record)


def corpus(scenes: DrawnScenes, films: DrawnFilms, n: int = 3000) -> Iterator[str]:
    """What the tokenizer is made from: exchanges about the first scenes and clips."""
    for i in range(min(n, len(scenes))):
        rng = np.random.default_rng((scenes.seed, i, 2))
        for item in exchanges(scenes.scene(i), scenes.boxes[i], scenes.config, rng):
            yield from (item.prompt, f" {item.answer}")
    for i in range(min(n // 10, len(films))):
        for item in clip_exchanges(films.clip(i), np.random.default_rng((films.seed, i, 3))):
            yield from (item.prompt, f" {item.answer}")


def build(
    clip_folder: Path, texts: Iterable[str], settings: LlavaTraining
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The untrained model with the tower and the picture preprocessing of the CLIP checkpoint, weights by the seed."""
    with quiet_loading():
        clip = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)
        images = CLIPProcessor.from_pretrained(clip_folder).image_processor
    vision: Any = clip.config.vision_config
    tokenizer = build_tokenizer(texts, settings.vocabulary, settings.positions)
    processor = build_processor(images, tokenizer, vision.patch_size)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=settings.feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.generation_config.update(**special, max_new_tokens=ANSWER_TOKENS)
    return model, processor


@dataclass(frozen=True)
class Course:
    """The stages of one training, taken in order; a stage that is finished in ``work`` is only read back."""

    model: LlavaForConditionalGeneration
    writer: Writer
    scenes: DrawnScenes
    clear: DrawnScenes
    films: DrawnFilms
    settings: LlavaTraining
    work: Path

    def take(self, number: int) -> FitReport:
        """Stage ``number``."""
        stage = self.settings.stages[number]
        self.model.model.vision_tower.requires_grad_(stage.tower)
        config = FitConfig(
            lr=stage.lr,
            batch_size=1,  # a sample is a batch
            weight_decay=self.settings.weight_decay,
            optimizer="muon",
            seed=self.settings.seed,
            save_every=50,
            keep=1,
            collate=itemgetter(0),
        )
        out = self.work / stage.name
        return fit(self.model, self.lessons(number), steps=stage.steps, loss=answer_loss, config=config, out=out)

    def lessons(self, number: int) -> Lessons:
        stage, settings = self.settings.stages[number], self.settings
        return Lessons(
            scenes=self.scenes if stage.wide else self.clear,
            films=None if stage.tasks == "captions" else self.films,
            writer=self.writer,
            steps=stage.steps,
            rows=settings.rows,
            budget=settings.budget,
            tasks=TASKS[stage.tasks],
            seed=10 * settings.seed + number,
        )


def answer_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Weighted cross-entropy of the answers' tokens of a batch of `Lessons`; of nothing else are logits computed."""
    ids = batch["ids"]
    hidden = model.model(
        ids,
        batch["pixel_values"],
        attention_mask=branch_mask(batch["branches"]),
        position_ids=batch["positions"],
        use_cache=False,
    ).last_hidden_state
    weights = batch["weights"][:, 1:]
    asked = weights > 0
    logits = model.lm_head(hidden[:, :-1][asked])
    targets, weights = ids[:, 1:][asked], weights[asked]
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum()
