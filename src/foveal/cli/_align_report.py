"""What `foveal align` measures before and after, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foveal.align.base import response_logps
from foveal.align.batches import PairCollator
from foveal.cli._align_folder import Folder, Watch
from foveal.cli._align_photos import Pairs, Photos, Row
from foveal.evaluate.models import Opened, VisionLanguage
from foveal.evaluate.tasks import TASKS

SHOWN = 8
DESCRIBE = "Describe this image in detail."
LONGEST = 256


@dataclass(frozen=True)
class Exam:
    """What the model is asked before and after.

    Attributes:
        tasks: names of `foveal eval`.
        n: items of each; None is the task's own number.
        data, images: for tasks that need files.
    """

    tasks: tuple[str, ...] = ()
    n: int | None = None
    data: Path | None = None
    images: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS or TASKS[name].kind != "vision-language":
                known = ", ".join(task for task, about in TASKS.items() if about.kind == "vision-language")
                raise ValueError(f"tasks holds {name!r}: choose from {known}")
            for need in TASKS[name].needs:
                if getattr(self, need) is None:
                    raise ValueError(f"tasks holds {name!r}, which needs --task-{need}")


def measure(
    opened: Opened, model: Any, photos: Photos, held: Sequence[Row], exam: Exam, watch: Watch
) -> dict[str, Any]:
    """Numbers on held-out pairs, and those of the exam's tasks (shares from 0 to 1)."""
    from foveal.evaluate.base import Setting
    from foveal.evaluate.run import run_task

    processor, size = opened.model.processor, opened.model.batch_size
    found = _preferences(model, processor, Pairs(photos, held), size, watch)
    teller = VisionLanguage(model, processor, size)
    names = list(dict.fromkeys(row.name for row in held))
    said = []
    for start in range(0, len(names), size):
        watch("describing held-out pictures", start, len(names))
        said += teller.answer([([photos.read(name)], DESCRIBE) for name in names[start : start + size]], LONGEST)
    found["words of a description"] = sum(len(text.split()) for text in said) / len(said)
    for name in exam.tasks:
        setting = Setting(exam.n or TASKS[name].size, exam.seed, exam.data, exam.images)
        result = run_task(TASKS[name], replace(opened, model=teller), setting, report=watch)
        found |= {f"{name}: {metric.name}": metric.value for metric in result.metrics}
    return {"metrics": found, "descriptions": dict(zip(names, said, strict=True))}


@torch.no_grad()
def _preferences(model: Any, processor: Any, pairs: Pairs, size: int, watch: Watch) -> dict[str, float]:
    """How often the preferred answer is the more likely one, as a whole and per token."""
    collate = PairCollator(processor)
    model.eval()
    whole, each = list[tuple[float, ...]](), list[tuple[float, ...]]()
    for start in range(0, len(pairs), size):
        watch("scoring held-out pairs", start, len(pairs))
        batch = {name: value.to(model.device) for name, value in collate(pairs[start : start + size]).items()}
        shared = {name: value for name, value in batch.items() if not name.startswith(("chosen_", "rejected_"))}
        for average, rows in ((False, whole), (True, each)):
            scores = []
            for side in ("chosen", "rejected"):
                inputs = {name: batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask")}
                logits = model(**shared, **inputs).logits
                scores.append(response_logps(logits, batch[f"{side}_labels"], average=average))
            rows += zip(*(score.tolist() for score in scores), strict=True)
    return {
        "preferred answer more likely": sum(chosen > rejected for chosen, rejected in whole) / len(whole),
        "the same per token": sum(chosen > rejected for chosen, rejected in each) / len(each),
        "log-probability per token, preferred": sum(chosen for chosen, _ in each) / len(each),
        "log-probability per token, dispreferred": sum(rejected for _, rejected in each) / len(each),
    }


def lengths(rows: Sequence[Row]) -> dict[str, float]:
    """Mean words of both answers: where they differ much, length is learned as well."""
    both = [(len(row.chosen.split()), len(row.rejected.split())) for row in rows]
    return {name: sum(column) / len(both) for name, column in zip(("preferred", "dispreferred"), zip(*both))}


def examples(photos: Photos, rows: Sequence[Row]) -> bytes:
    """A picture of some pairs."""
    from foveal.data.transforms import resize_square
    from foveal.lab.figures import picture_grid, png

    pictures, captions = [], []
    for row in rows[:SHOWN]:
        pictures.append(resize_square(photos.read(row.name), 224))
        text = f"+ {row.chosen[:180]} − {row.rejected[:180]}".replace("$", r"\$")
        captions.append("".join(letter if letter.isprintable() else " " for letter in text))
    return png(picture_grid(pictures, captions, columns=4, size=2.4))


def finish(folder: Folder, report: dict[str, Any], photos: Photos, rows: Sequence[Row], json: bool) -> None:
    """Write report and examples, and show the numbers."""
    from foveal.data.files import write_atomically

    write_atomically(folder.out / "pairs.png", examples(photos, rows))
    folder.write("report.json", report)
    if json:
        from foveal.cli import print_json

        print_json(report)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in (f"on {report['pairs']['held out']} held-out pairs, and tasks", "before", "after"):
        table.add_column(header, justify="left" if header.startswith("on") else "right")
    before, after = report["before"]["metrics"], report["after"]["metrics"]
    for name in before:
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}")
    console = Console()
    console.print(table, highlight=False)
    words = report["words of an answer"]
    console.print(
        f"{report['pairs']['train']} pairs trained on; preferred answers have {words['preferred']:.0f} words, "
        f"dispreferred ones {words['dispreferred']:.0f}",
        highlight=False,
    )
    for reason, count in report["skipped"].items():
        console.print(f"skipped: {count} ({reason})", highlight=False)
    for path in sorted(folder.out.iterdir()):
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)
