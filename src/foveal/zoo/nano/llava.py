"""nano-llava: a ``LlavaForConditionalGeneration`` of six million parameters that looks through nano-clip's eyes.

Trained in the stages of LLaVA (Liu et al., arXiv 2304.08485): captions first, then every kind of exchange. As its
language model starts from nothing, both stages train it together with the projector. The tower is frozen in them, so
that its features are computed once; a last, shorter stage trains the tower too, as LLaVA-NeXT does.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from foveal.train import FitConfig, fit
from foveal.zoo import nano
from foveal.zoo.nano.chat import build_processor, build_tokenizer
from foveal.zoo.nano.conversations import CAPTIONS, EVERYTHING, clip_exchanges, exchanges
from foveal.zoo.nano.films import DrawnFilms
from foveal.zoo.nano.lessons import Lessons, Writer, branch_mask
from foveal.zoo.nano.scenes import LLAVA_WORLD, DrawnScenes
from foveal.zoo.nano.training import TrainingRecord, check_destination, publish_checkpoint
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
    """``tasks``: "captions" or "everything"; ``tower``: whether the vision tower learns too."""

    name: str
    steps: int
    lr: float
    tasks: str = "everything"
    tower: bool = False


@dataclass(frozen=True)
class LlavaTraining:
    """All that shapes the weights, nano-clip aside."""

    scenes: int = 24_000
    films: int = 1500
    stages: tuple[Stage, ...] = (
        Stage("align", 400, 1e-3, "captions"),
        Stage("instruct", 2400, 1e-3),
        Stage("tune", 800, 4e-4, tower=True),
    )
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
    stages=(Stage("align", 1, 1e-3, "captions"), Stage("instruct", 10, 1e-3), Stage("tune", 1, 4e-4, tower=True)),
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
    start = time.monotonic()
    scenes = DrawnScenes(LLAVA_WORLD, settings.seed, settings.scenes)
    films = DrawnFilms(LLAVA_WORLD, settings.seed, settings.films)
    model, processor = build(clip, corpus(scenes, films), settings)
    digest = hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest()
    course = Course(model, Writer(processor, model.config.image_seq_length), scenes, films, settings, work, digest)
    curves = {f"{stage.name} loss": course.take(number) for number, stage in enumerate(settings.stages)}
    seconds = time.monotonic() - start
    config = {**asdict(settings), "nano-clip": digest}
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
    films: DrawnFilms
    settings: LlavaTraining
    work: Path
    clip_digest: str

    def take(self, number: int, every: int = 20) -> list[tuple[int, float]]:
        """Stage ``number``; its loss as (step, mean over ``every`` steps)."""
        stage = self.settings.stages[number]
        self.model.model.vision_tower.requires_grad_(stage.tower)
        config = FitConfig(
            lr=stage.lr,
            batch_size=1,  # a sample is a batch
            weight_decay=self.settings.weight_decay,
            save_every=50,
            keep=1,
            collate=itemgetter(0),
        )
        out = self.work / stage.name
        report = fit(self.model, self.lessons(number), steps=stage.steps, loss=answer_loss, config=config, out=out)
        every = min(every, stage.steps)
        ends = range(every, stage.steps + 1, every)
        return [(end, round(sum(report.losses[end - every : end]) / every, 5)) for end in ends]

    def lessons(self, number: int) -> Lessons:
        stage, settings = self.settings.stages[number], self.settings
        captions = stage.tasks == "captions"
        return Lessons(
            scenes=self.scenes,
            films=None if captions else self.films,
            scene_features=None if stage.tower else self.features(self.scenes),
            film_features=None if stage.tower or captions else self.features(self.films),
            writer=self.writer,
            steps=stage.steps,
            rows=settings.rows,
            budget=settings.budget,
            tasks=CAPTIONS if captions else EVERYTHING,
            seed=10 * settings.seed + number,
        )

    def features(self, drawn: DrawnScenes | DrawnFilms) -> Float[np.ndarray, "..."]:
        """(…, tokens, width): half-precision features of the untrained tower for all pictures, kept in ``work``."""
        key = f"{drawn!r} {self.clip_digest} {self.settings.feature_layer}"
        path = self.work / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            write_features(self.model, self.writer, drawn.images, path)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def tower_features(model: LlavaForConditionalGeneration, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n w"]:
    """What the projector is given: the patch tokens of the layer that the config names, without CLS."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


def write_features(
    model: LlavaForConditionalGeneration, writer: Writer, images: UInt8[np.ndarray, "*n h w 3"], path: Path
) -> None:
    """`tower_features` of all images, in half precision, into a file that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    flat = images.reshape(-1, *images.shape[-3:])
    shape = (*images.shape[:-3], config.image_seq_length, config.vision_config.hidden_size)
    aside = path.with_name(f".{path.name}")
    kept = np.lib.format.open_memmap(aside, "w+", np.float16, shape)
    rows = kept.reshape(len(flat), *shape[-2:])
    console = Console(stderr=True)
    starts = track(range(0, len(flat), 64), "looking", console=console, disable=not sys.stderr.isatty())
    with torch.no_grad():
        for start in starts:
            part = slice(start, start + 64)
            rows[part] = tower_features(model, writer.pixels(flat[part])).half().numpy()
    kept.flush()
    aside.replace(path)


def answer_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weighted cross-entropy of the answers' tokens of a batch of `Lessons`, and how many are predicted rightly."""
    inner, ids = model.model, batch["ids"]
    features = batch["features"].float() if "features" in batch else tower_features(model, batch["pixel_values"])
    embeddings = inner.get_input_embeddings()(ids)
    places = (ids == model.config.image_token_id)[..., None].expand_as(embeddings)
    hidden = inner(
        inputs_embeds=embeddings.masked_scatter(places, inner.multi_modal_projector(features)),
        attention_mask=branch_mask(batch["branches"]),
        position_ids=batch["positions"],
        use_cache=False,
    ).last_hidden_state
    weights = batch["weights"][:, 1:]
    asked = weights > 0
    logits = model.lm_head(hidden[:, :-1][asked])
    targets, weights = ids[:, 1:][asked], weights[asked]
    losses = F.cross_entropy(logits, targets, reduction="none")
    return {"loss": (losses * weights).sum() / weights.sum(), "right": (logits.argmax(1) == targets).float().mean()}
