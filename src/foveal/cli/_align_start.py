"""What the commands of `foveal align` do alike: open the model and the photos, measure, train, measure again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.cli._align_folder import Folder, Watch
from foveal.cli._align_options import AlignOptions
from foveal.cli._align_photos import Pairs, Photos, Row, find_photos, split
from foveal.cli._align_report import Exam, lengths, measure
from foveal.cli._align_train import Tuning
from foveal.evaluate.models import Opened, VisionLanguage, open_model


@dataclass
class Start:
    """One run. ``losses`` are those of every stage so far."""

    given: AlignOptions
    folder: Folder
    photos: Photos
    opened: Opened
    settings: dict[str, Any]
    losses: dict[str, list[float]] = field(default_factory=dict)

    def run(
        self,
        rows: Sequence[Row],
        exam: Exam,
        train: Callable[[Pairs], Any],
        watch: Watch,
    ) -> dict[str, Any]:
        """Train on most of the pairs; the report of all of it. ``train`` gives the plain tuned model."""
        taught, held = split(rows, self.given.held_out, self.given.seed)
        notes = self.folder.notes("measuring")
        untouched = self.opened.model.model
        before = notes.once("before", lambda: measure(self.opened, untouched, self.photos, held, exam, watch))
        tuned = train(Pairs(self.photos, taught)).to(untouched.device).eval()
        after = notes.once("after", lambda: measure(self.opened, tuned, self.photos, held, exam, watch))
        if self.given.merge:
            tuned.save_pretrained(self.folder.out / "model")
            self.opened.model.processor.save_pretrained(self.folder.out / "model")
        return {
            "method": self.settings["method"],
            "model": self.opened.name,
            "pictures": len(self.photos.names),
            "captions": len(self.photos.captions),
            "pairs": {"train": len(taught), "held out": len(held)},
            "words of an answer": lengths(rows),
            "skipped": self.photos.skipped,
            "before": before,
            "after": after,
            "losses": self.losses,
            "settings": self.settings,
        }


def begin(given: AlignOptions, method: str, watch: Watch) -> Start:
    """The model, the photos and the folder of the run. ValueError: any of them cannot be used."""
    if given.n is not None and given.n < 2:
        raise ValueError(f"n={given.n}: give at least two photos, one is held out")
    split([0, 1], given.held_out, 0)  # a bad share is refused before anything is made
    opened = open_model(given.model, device=given.device, dtype=given.dtype, batch_size=given.batch_size)
    if not isinstance(opened.model, VisionLanguage):
        raise ValueError(f"model={given.model!r} is no vision-language model: give one such as nano-llava")
    photos, settings = find_photos(given.images, given.n, watch), given.settings(method)
    known = {**settings, "weights": opened.sha256, "pictures": photos.names, "captions": photos.captions}
    return Start(given, Folder(given.out, known), photos, opened, settings)


def tuning(given: AlignOptions, epochs: float, lr: float) -> Tuning:
    """Of one stage."""
    return Tuning(epochs, given.batch_size, lr, given.rank, given.max_length, given.seed)


def exam_of(given: AlignOptions) -> Exam:
    return Exam(given.tasks, given.task_n, given.task_data, given.task_images, given.seed)
