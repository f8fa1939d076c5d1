"""What the commands of `foveal align` do alike: open the model and the photos, measure, train, measure again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.cli._align_folder import Folder, Watch
from foveal.cli._align_photos import Pairs, Photos, Row, find_photos, split
from foveal.cli._align_report import Exam, lengths, measure
from foveal.evaluate.models import Opened, VisionLanguage, open_model


@dataclass
class Start:
    """One run. ``losses`` are those of every stage so far."""

    folder: Folder
    photos: Photos
    opened: Opened
    settings: dict[str, Any]
    losses: dict[str, list[float]] = field(default_factory=dict)

    def run(
        self,
        rows: Sequence[Row],
        held_out: float,
        exam: Exam,
        train: Callable[[Pairs], Any],
        merge: bool,
        watch: Watch,
    ) -> dict[str, Any]:
        """Train on most of the pairs; the report of all of it. ``train`` gives the plain tuned model."""
        taught, held = split(rows, held_out, self.settings["seed"])
        notes = self.folder.notes("measuring")
        untouched = self.opened.model.model
        before = notes.once("before", lambda: measure(self.opened, untouched, self.photos, held, exam, watch))
        tuned = train(Pairs(self.photos, taught)).to(untouched.device).eval()
        after = notes.once("after", lambda: measure(self.opened, tuned, self.photos, held, exam, watch))
        if merge:
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


def begin(
    images: Path,
    n: int | None,
    model: str,
    out: Path,
    settings: dict[str, Any],
    opening: tuple[str, str, int],
    held_out: float,
    watch: Watch,
) -> Start:
    """The model, the photos and the folder of the run. ValueError: any of them cannot be used."""
    if n is not None and n < 2:
        raise ValueError(f"n={n}: give at least two photos, one is held out")
    split([0, 1], held_out, 0)  # a bad share is refused before anything is made
    device, dtype, batch_size = opening
    opened = open_model(model, device=device, dtype=dtype, batch_size=batch_size)
    if not isinstance(opened.model, VisionLanguage):
        raise ValueError(f"model={model!r} is no vision-language model: give one such as nano-llava")
    photos = find_photos(images, n, watch)
    known = {**settings, "weights": opened.sha256, "pictures": photos.names, "captions": photos.captions}
    return Start(Folder(out, known), photos, opened, settings)
