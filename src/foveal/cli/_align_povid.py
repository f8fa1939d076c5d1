"""`foveal align povid`: errors written into true answers, and what noise makes the model say, become dispreferred."""

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
LONGEST = 256


@dataclass(frozen=True, kw_only=True)
class PovidOptions(AlignOptions):
    """Those of `povid`.

    Args:
        out: folder for what is written.
        lm: who writes the errors: smollm2, openai:URL[#model] or scripted:FILE.json.
        instruction: what the answers answer.
        stage1_epochs: passes of DPO on the written errors alone.
        stage2_epochs: passes with the noise-triggered errors as well.
        noise_step: of 1000 steps of diffusion.
        lr: peak learning rate; the paper takes 1e-7 for 17,000 pairs one by one.
        rank: of the adapter of each stage (the paper: 128); the written one has twice as much.
        seed: of noise, the held-out pairs and training.
    """

    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("povid")
    lm: str = "smollm2"
    instruction: str = "Describe this image in detail."
    stage1_epochs: float = 3.0
    stage2_epochs: float = 1.0
    noise_step: int = 500
    lr: float = 5e-6
    rank: int = 16
    seed: int = 0


def povid(given: Annotated[PovidOptions, tyro.conf.arg(name="")]) -> None:
    """POVID: train a vision-language model against errors that a language model writes into true answers, and noise.

    The true answer to a photo is the first line of the text file beside it (cat.jpg, cat.txt); without one it is what
    the model says, so give captions where you have them. Writes OUT/preferences.json (the released format), OUT/adapter
    (a LoRA of peft), a report of held-out pairs and tasks before and after, and a picture of pairs. After Ctrl-C the
    same command goes on where it was.
    """
    from foveal.cli._pictures import progress

    with progress() as watch:
        watch("loading", 0, 1)
        from foveal.align.povid import STEPS
        from foveal.cli._align_report import finish
        from foveal.cli._align_start import begin, exam_of, tuning
        from foveal.llm import language_model

        if not 0 <= given.noise_step < STEPS:
            raise ValueError(f"noise_step={given.noise_step}: must lie in [0, {STEPS})")
        plan = [tuning(given, epochs, given.lr) for epochs in (given.stage1_epochs, given.stage2_epochs)]
        exam, writer = exam_of(given), language_model(given.lm)
        start = begin(given, "povid", watch)
        rows = _rows(start.folder, start.photos, start.opened, writer, given.instruction, given.batch_size, watch)
        report = start.run(rows, exam, lambda taught: _train(start, taught, plan, given.noise_step, watch), watch)
    finish(start.folder, report, start.photos, rows, given.json)


def _rows(
    folder: Folder, photos: Photos, opened: Opened, lm: Any, instruction: str, batch_size: int, watch: Watch
) -> list[Row]:
    """Pairs of all photos whose answer could be falsified, written to preferences.json."""
    from foveal.align.povid import HALLUCINATION_KINDS, inject_hallucinations, write_preferences
    from foveal.cli._align_photos import Row

    def describe(names: Sequence[str]) -> list[str]:
        return opened.model.answer([([photos.read(name)], instruction) for name in names], LONGEST)

    own = [name for name in photos.names if name not in photos.captions]
    answers = photos.captions | dict(
        zip(own, folder.notes("describing").each(own, describe, batch_size, watch), strict=True)
    )

    def falsify(names: Sequence[str]) -> list[Any]:
        found = []
        for name in names:
            sample = {"id": name, "image": name, "instruction": instruction, "answer": answers[name]}
            kind = HALLUCINATION_KINDS[photos.names.index(name) % len(HALLUCINATION_KINDS)]
            usable = bool(answers[name].strip())
            found.append(next(iter(inject_hallucinations([sample], lm, kinds=(kind,))), None) if usable else None)
        return found

    records = [r for r in folder.notes("writing errors").each(photos.names, falsify, 1, watch) if r is not None]
    photos.skipped.update(
        {"no usable answer or error": len(photos.names) - len(records)} if len(records) < len(photos.names) else {}
    )
    if not records:
        raise ValueError("lm wrote no error into any answer: give another one with --lm, or captions beside the photos")
    write_preferences(folder.out / "preferences.json", records)
    return [
        Row(r["image"], instruction, r["conversations"][1]["value"], r["rejected_conversations"][1]["value"])
        for r in records
    ]


def _train(start: Any, taught: Sequence[Any], plan: list[Tuning], noise_step: int, watch: Watch) -> Any:
    """Both stages; what a stage left is the reference of the next."""
    from foveal.align.batches import PairCollator
    from foveal.align.povid import POVIDObjective
    from foveal.cli._align_train import adapted, merged, save_adapter

    model, parts = start.opened.model.model, []
    for number, tuning in enumerate(plan, 1):
        watch(f"training, stage {number}", 0, 1)
        policy = adapted(model, tuning)
        noise = noise_step if number == 2 else None
        collate = PairCollator(start.opened.model.processor, tuning.max_length, noise_step=noise, seed=tuning.seed)
        objective = POVIDObjective(policy, None, stage=1 if number == 1 else 2)
        start.losses[f"stage {number}"] = tuning.fit(
            objective, taught, collate, lambda model, batch: model(batch).loss, start.folder.work / f"stage{number}"
        )
        model, tensors, config = merged(policy)
        parts.append(tensors)
    save_adapter(start.folder.out / "adapter", parts, config, str(start.opened.name))
    return model
