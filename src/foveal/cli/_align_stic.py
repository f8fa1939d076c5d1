"""`foveal align stic`: a model describes photos well and badly and learns the difference, then answers questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveal.cli._align_options import AlignOptions

if TYPE_CHECKING:
    from foveal.cli._align_folder import Folder, Watch
    from foveal.cli._align_photos import Photos, Row
    from foveal.cli._align_train import Tuning
    from foveal.evaluate.models import Opened

TEMPERATURE, LONGEST = 0.2, 256


@dataclass(frozen=True, kw_only=True)
class SticOptions(AlignOptions):
    """Those of `stic`.

    Args:
        out: folder for what is written.
        questions: LLaVA's JSON of questions and answers about pictures in the same folder; without it there is no
            stage 2.
        stage1_epochs: passes over the pairs.
        stage2_epochs: passes over the questions.
        alpha: weight of the chosen description's own likelihood.
        lr: peak learning rate of stage 1; the paper takes 1e-7 for 6,000 photos.
        stage2_lr: of stage 2.
        rank: of the adapter (the paper: 128).
        seed: of prompts, corruptions, sampling, the held-out pairs and training.
    """

    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("stic")
    questions: Path | None = None
    stage1_epochs: float = 1.0
    stage2_epochs: float = 1.0
    alpha: float = 1 / 1024
    lr: float = 5e-6
    stage2_lr: float = 2e-5
    rank: int = 16
    seed: int = 0


def stic(given: Annotated[SticOptions, tyro.conf.arg(name="")]) -> None:
    """STIC: a vision-language model describes unlabelled photos well and badly, and learns to prefer the good.

    With --questions it then answers old questions with its own descriptions in front (stage 2). Writes
    OUT/preferences.json (the form of POVID's release), OUT/adapter (a LoRA of peft), a report of held-out pairs and
    tasks before and after, and a picture of pairs. After Ctrl-C the same command goes on where it was.
    """
    from foveal.cli._pictures import progress

    with progress() as watch:
        watch("loading", 0, 1)
        from foveal.align.base import check_weights
        from foveal.cli._align_report import finish
        from foveal.cli._align_start import begin, exam_of, tuning

        check_weights(alpha=given.alpha)
        plan = tuning(given, given.stage1_epochs, given.lr), tuning(given, given.stage2_epochs, given.stage2_lr)
        exam, asked = exam_of(given), _questions(given.questions, given.images)
        start = begin(given, "stic", watch)
        rows = _rows(start.folder, start.photos, start.opened, given.seed, given.batch_size, watch)
        report = start.run(rows, exam, lambda taught: _train(start, taught, asked, plan, given.alpha, watch), watch)
    report["questions"] = len(asked)
    finish(start.folder, report, start.photos, rows, given.json)


def _questions(file: Path | None, images: Path) -> list[tuple[str, dict[str, Any]]]:
    """Image names and records, each opening with a question and its answer about one picture."""
    from foveal.data.llava_json import LlavaJson

    if file is None:
        return []
    found = []
    for record in LlavaJson(file, images).records:
        turns = record.get("conversations") if isinstance(record, dict) else None
        speakers = [turn.get("from") for turn in turns[:2]] if isinstance(turns, list) else None
        if speakers == ["human", "gpt"] and isinstance(record.get("image"), str):
            found.append((record["image"], record))
    if not found:
        raise ValueError(f"questions={str(file)!r} holds no record with an image, a human turn and a gpt turn")
    return found


def _rows(folder: Folder, photos: Photos, opened: Opened, seed: int, batch_size: int, watch: Watch) -> list[Row]:
    """A pair for each photo whose two descriptions differ, written to preferences.json."""
    import torch

    from foveal.align.povid import preference_record, write_preferences
    from foveal.align.stic_data import build_preference_pairs
    from foveal.cli._align_photos import Row
    from foveal.evaluate.models import VisionLanguage

    options = {"do_sample": True, "temperature": TEMPERATURE}
    model = VisionLanguage(opened.model.model, opened.model.processor, batch_size, options)

    def pairs(names: Sequence[str]) -> list[Any]:
        first = photos.names.index(names[0])
        tensors = [torch.from_numpy(photos.read(name)).permute(2, 0, 1) / 255 for name in names]

        def describe(asked: Sequence[Any]) -> list[str]:
            shown = [(255 * image).round().byte().permute(1, 2, 0).contiguous().numpy() for image, _ in asked]
            with torch.random.fork_rng():  # transformers draws from the global generator only
                torch.manual_seed((seed << 20) + first)
                return model.answer([([image], prompt) for image, (_, prompt) in zip(shown, asked)], LONGEST)

        return [vars(pair) for pair in build_preference_pairs(tensors, describe, seed, first)]

    made = folder.notes("describing").each(photos.names, pairs, batch_size, watch)
    usable = [
        (name, pair)
        for name, pair in zip(photos.names, made, strict=True)
        if pair["chosen"].strip() and pair["rejected"].strip() and pair["chosen"].strip() != pair["rejected"].strip()
    ]
    if len(usable) < len(made):
        photos.skipped["both descriptions alike, or one empty"] = len(made) - len(usable)
    records = [
        preference_record(name, name, pair["prompt"], pair["chosen"], pair["rejected"]) | {"source": pair["source"]}
        for name, pair in usable
    ]
    if records:
        write_preferences(folder.out / "preferences.json", records)
    return [Row(name, pair["prompt"], pair["chosen"], pair["rejected"]) for name, pair in usable]


def _train(start: Any, taught: Any, asked: list[Any], plan: tuple[Tuning, Tuning], alpha: float, watch: Watch) -> Any:
    """Stage 1, and stage 2 with the same adapter when there are questions."""
    from foveal.align.batches import PairCollator
    from foveal.align.stic import STICObjective
    from foveal.cli._align_train import adapted, merged, save_adapter

    watch("training, stage 1", 0, 1)
    policy = adapted(start.opened.model.model, plan[0])
    collate = PairCollator(start.opened.model.processor, plan[0].max_length)
    start.losses["stage 1"] = plan[0].fit(
        STICObjective(policy, None, alpha=alpha),
        taught,
        collate,
        lambda model, batch: model(batch).loss,
        start.folder.work / "stage1",
    )
    if asked:
        rows = _infused(start, policy, asked, plan[1], watch)
        watch("training, stage 2", 0, 1)
        start.losses["stage 2"] = plan[1].fit(
            policy, rows, collate.answers, lambda model, batch: model(**batch).loss, start.folder.work / "stage2"
        )
    model, tensors, config = merged(policy)
    save_adapter(start.folder.out / "adapter", [tensors], config, str(start.opened.name))
    return model


def _infused(start: Any, policy: Any, asked: list[Any], tuning: Tuning, watch: Watch) -> list[Any]:
    """Picture, question with the model's description in front, and answer."""
    from foveal.align.stic import DESCRIPTION_PROMPTS, infuse_description
    from foveal.data.images import file_in, read_image
    from foveal.evaluate.models import VisionLanguage

    model = VisionLanguage(policy, start.opened.model.processor, tuning.batch_size)
    prompts = {name: DESCRIPTION_PROMPTS[i % len(DESCRIPTION_PROMPTS)] for i, (name, _) in enumerate(asked)}
    root = start.photos.root

    def describe(names: Sequence[str]) -> list[str]:
        return model.answer([([read_image(file_in(root, name))], prompts[name]) for name in names], LONGEST)

    texts = start.folder.notes("describing again").each(list(prompts), describe, tuning.batch_size, watch)
    told = dict(zip(prompts, texts, strict=True))
    rows = []
    for name, record in asked:
        question, answer = infuse_description(record, told[name])["conversations"][:2]
        asked_text = question["value"].replace("<image>", "").strip()  # LLaVA's files have it in front or behind
        rows.append((read_image(file_in(root, name)), asked_text, answer["value"]))
    return rows
