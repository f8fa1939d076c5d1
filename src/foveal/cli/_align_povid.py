"""`foveal align povid`: errors written into true answers, and what noise makes the model say, become dispreferred."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from foveal.cli._align_folder import Folder, Watch
    from foveal.cli._align_photos import Photos, Row
    from foveal.cli._align_train import Tuning
    from foveal.evaluate.models import Opened


LONGEST = 256


def povid(
    images: Path,
    model: str = "nano-llava",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("povid"),
    lm: str = "smollm2",
    instruction: str = "Describe this image in detail.",
    n: int | None = None,
    stage1_epochs: float = 3.0,
    stage2_epochs: float = 1.0,
    noise_step: int = 500,
    lr: float = 5e-6,
    rank: int = 16,
    batch_size: int = 4,
    max_length: int = 1024,
    held_out: float = 0.1,
    tasks: tuple[str, ...] = (),
    task_n: int | None = None,
    task_data: Path | None = None,
    task_images: Path | None = None,
    merge: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> None:
    """POVID: train a vision-language model against errors that a language model writes into true answers, and noise.

    The true answer to a photo is the first line of the text file beside it (cat.jpg, cat.txt); without one it is what
    the model says, so give captions where you have them. Writes OUT/preferences.json (the released format), OUT/adapter
    (a LoRA of peft), a report of held-out pairs and tasks before and after, and a picture of pairs. After Ctrl-C the
    same command goes on where it was.

    Args:
        images: folder of photos.
        model: nano-llava, a folder made by save_pretrained, or a hub id of a LLaVA-like model.
        out: folder for what is written.
        lm: who writes the errors: smollm2, openai:URL[#model] or scripted:FILE.json.
        instruction: what the answers answer.
        n: so many photos at most.
        stage1_epochs: passes of DPO on the written errors alone.
        stage2_epochs: passes with the noise-triggered errors as well.
        noise_step: of 1000 steps of diffusion.
        lr: peak learning rate; the paper takes 1e-7 for 17,000 pairs one by one.
        rank: of the adapter of each stage (the paper: 128); the written one has twice as much.
        batch_size: pairs a step, and most questions at once.
        max_length: tokens of picture, prompt and answer.
        held_out: share of the pairs that is only measured on.
        tasks: of foveal eval, taken before and after: world-existence, world-caption, pope, chair …
        task_n: items of each task.
        task_data: file or folder for pope and chair.
        task_images: their pictures.
        merge: also write OUT/model, the checkpoint with the adapter in its weights.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        dtype: auto, float32, bfloat16 or float16.
        seed: of noise, the held-out pairs and training.
        json: print the report as one JSON document.
    """
    from foveal.cli._pictures import progress

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    for free in ("out", "json", "merge", "device", "progress"):
        settings.pop(free)
    with progress() as watch:
        watch("loading", 0, 1)
        from foveal.align.povid import STEPS
        from foveal.cli._align_report import Exam, finish
        from foveal.cli._align_start import begin
        from foveal.cli._align_train import Tuning
        from foveal.llm import language_model

        if not 0 <= noise_step < STEPS:
            raise ValueError(f"noise_step={noise_step}: must lie in [0, {STEPS})")
        plan = [Tuning(epochs, batch_size, lr, rank, max_length, seed) for epochs in (stage1_epochs, stage2_epochs)]
        exam = Exam(tasks, task_n, task_data, task_images, seed)
        writer = language_model(lm)
        start = begin(
            images, n, model, out, {"method": "povid", **settings}, (device, dtype, batch_size), held_out, watch
        )
        rows = _rows(start.folder, start.photos, start.opened, writer, instruction, batch_size, watch)
        report = start.run(
            rows, held_out, exam, lambda taught: _train(start, taught, plan, noise_step, watch), merge, watch
        )
    finish(start.folder, report, start.photos, rows, json)


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
