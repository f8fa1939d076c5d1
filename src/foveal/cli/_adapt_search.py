"""What the searches for prompts share: labelled pictures as features, a search that goes on, its report and chart."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from foveal.adapt.base_search import Chat, SearchJournal
    from foveal.cli._adapt_search_options import SearchOptions
    from foveal.evaluate.models import Opened

Watch = Callable[[str, int, int], None]
Given = TypeVar("Given", bound="SearchOptions")
BEST = 3
"""Prompts of an ensemble."""
UNKNOWN = "unknown label"


@dataclass(frozen=True)
class Shots:
    """Features of the readable pictures of a CSV file; ``skipped``: why others were left out -> how many."""

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    classes: list[str]
    skipped: dict[str, int]

    def accuracy(self, encoder: Any, prompts: Sequence[str], placeholder: str) -> float:
        """Percent, of the ensemble of the prompts."""
        from foveal.adapt.glov import template_weights, top1_accuracy

        weights = template_weights(encoder.text_features, self.classes, prompts, placeholder=placeholder)
        return top1_accuracy(self.features, self.labels, weights)

    @property
    def digest(self) -> str:
        content = self.features.numpy().tobytes() + self.labels.numpy().tobytes() + repr(self.classes).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def carry_out(given: Given, search: Callable[[Given, Watch], dict[str, Any]]) -> None:
    """The search, which gives a `report`, behind a bar; the report in its folder, and as a table or as JSON."""
    from foveal.cli._pictures import progress

    with progress() as watch:
        document = search(given, watch)
        written = write_report(given.out, document)
    if given.json:
        from foveal.cli import print_json

        print_json(document)
    else:
        show(document, written)


def material(given: SearchOptions, watch: Watch) -> tuple[Opened, Shots, Shots | None]:
    """The model, the pictures to search on, and those to test on."""
    names = None if given.classes is None else read_classes(given.classes)
    opened = dual_encoder(given.model, given.device, given.batch_size)
    shots = read_shots(given.train, opened.model, names, watch)
    tests = None if given.test is None else read_shots(given.test, opened.model, shots.classes, watch)
    return opened, shots, tests


def dual_encoder(model: str, device: str, batch_size: int) -> Opened:
    """An `Opened` CLIP, SigLIP or the like; ValueError for any other kind."""
    from foveal.evaluate.models import open_model

    opened = open_model(model, device=device, batch_size=batch_size)
    if opened.kind != "dual encoder":
        raise ValueError(f"model={model!r} is a {opened.kind} model: give a dual encoder such as nano-clip")
    return opened


def read_classes(file: Path) -> list[str]:
    """Class names, one a line; ValueError for fewer than two and for repeats."""
    names = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file} names {repeated[0]!r} twice: name each class once")
    return _at_least_two(names, file)


def read_shots(file: Path, encoder: Any, classes: list[str] | None, watch: Watch) -> Shots:
    """The pictures of a CSV file with the columns image and label; paths are relative to its folder.

    Rows of labels that ``classes`` does not name, and pictures that do not open, are skipped and counted.

    Raises ValueError: other columns, no row that is left, fewer than two classes, too many broken pictures.
    """
    import torch

    from foveal.data.faults import Faults, SampleError
    from foveal.data.images import read_image

    rows = _rows(file)
    names = classes or _at_least_two(sorted({label for _, label in rows}), file)
    faults, pictures, labels = Faults(str(file)), [], []
    unknown = [label for _, label in rows if label not in names]
    for number, (image, label) in enumerate(rows):
        watch("reading pictures", number, len(rows))
        if label in names:
            try:
                pictures.append(read_image(file.parent / image))
            except SampleError as error:
                faults.record(image, error)
            else:
                faults.sound()
                labels.append(names.index(label))
    faults.finish()
    if not labels:
        few = ", ".join(sorted(set(unknown))[:3])
        raise ValueError(f"{file} has no picture of the {len(names)} classes; its labels are {few}, …")
    watch("looking at pictures", 0, 1)
    counts = {**dict(faults.counts), **({UNKNOWN: len(unknown)} if unknown else {})}
    return Shots(encoder.image_features(pictures), torch.tensor(labels), names, counts)


def _rows(file: Path) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))
    if not reader.fieldnames or not {"image", "label"} <= set(reader.fieldnames):
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise ValueError(f"{file}: the first line must name the columns image and label; it names {found}")
    try:
        rows = [((row["image"] or "").strip(), (row["label"] or "").strip()) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file ({error})") from error
    for number, row in enumerate(rows, 2):
        if not all(row):
            raise ValueError(f"{file}: line {number} lacks an image or a label")
    return rows


def _at_least_two(names: list[str], file: Path) -> list[str]:
    if len(names) < 2:
        raise ValueError(f"{file} has {len(names)} class(es): a search needs at least two ({', '.join(names)})")
    return names


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a UTF-8 text file: save it as one") from error


class Fitness:
    """Accuracy of one prompt on the shots; ``history`` has all that were asked for, in their order."""

    def __init__(self, shots: Shots, encoder: Any, placeholder: str, journal: SearchJournal) -> None:
        self.shots, self.encoder, self.placeholder = shots, encoder, placeholder
        self.score = journal.score(lambda prompt: shots.accuracy(encoder, [prompt], placeholder))
        self.history: dict[str, float] = {}

    def __call__(self, prompt: str) -> float:
        self.history[prompt] = self.score(prompt)
        return self.history[prompt]


def writer(
    lm: str, as_list: Callable[[Any], str], first: str, journal: SearchJournal, budget: int, watch: Watch
) -> tuple[Chat, list[int]]:
    """The language model behind the journal, and how many replies there were (the last of the list).

    A local one goes on with a list instead of answering, see `ListContinuer` also for ``as_list`` and ``first``.
    """
    from foveal.adapt.base_continue import ListContinuer
    from foveal.llm import HFLM, language_model

    model: Any = language_model(lm)
    heard = [0]
    if isinstance(model, HFLM):
        model = ListContinuer(model, as_list, first)

    def count(number: int) -> None:
        heard.append(number)
        watch("asking the language model", number, budget)

    return journal.model(model, count), heard


def report(fitness: Fitness, first: str, test: Shots | None, **more: Any) -> dict[str, Any]:
    """What was found, for JSON. ``first`` is the prompt that it is compared with."""
    found = fitness.history
    best = sorted(found, key=lambda prompt: -found[prompt])[:BEST]  # the earliest of equals first

    def entry(prompts: list[str]) -> dict[str, Any]:
        of: dict[str, Any] = {"prompts": prompts}
        of["accuracy"] = round(fitness.shots.accuracy(fitness.encoder, prompts, fitness.placeholder), 2)
        if test is not None:
            of["test accuracy"] = round(test.accuracy(fitness.encoder, prompts, fitness.placeholder), 2)
        return of

    parts = {"first": entry([first]), "best": entry(best[:1]), "ensemble": entry(best)}
    pictures = {"train": len(fitness.shots.labels), "skipped": fitness.shots.skipped}
    if test is not None:
        pictures |= {"test": len(test.labels), "test skipped": test.skipped}
    history = [{"prompt": prompt, "accuracy": round(score, 2)} for prompt, score in found.items()]
    return {**more, "classes": fitness.shots.classes, "pictures": pictures, **parts, "history": history}


def write_report(out: Path, document: dict[str, Any]) -> list[Path]:
    """prompts.json and history.png."""
    import json

    from foveal.data.files import write_atomically

    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    files = {out / "prompts.json": text.encode(), out / "history.png": _chart(document)}
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def _chart(document: dict[str, Any]) -> bytes:
    """Every prompt's accuracy in the order of its finding, and the best so far."""
    from itertools import accumulate

    from foveal.lab.figures import png, subplots

    scores = [entry["accuracy"] for entry in document["history"]]
    figure, axis = subplots()
    axis.plot(scores, "o", markersize=4, alpha=0.5, label="a prompt")
    axis.step(range(len(scores)), list(accumulate(scores, max)), where="post", label="best so far")
    axis.axhline(document["first"]["accuracy"], linestyle=":", color="grey", label=document["first"]["prompts"][0])
    axis.set_xlabel("prompts in the order of their finding")
    axis.set_ylabel(f"accuracy on {document['pictures']['train']} pictures, %")
    axis.set_title(document["best"]["prompts"][0][:80], fontsize=9)
    axis.legend(fontsize=8)
    return png(figure)


def show(document: dict[str, Any], written: Sequence[Path]) -> None:
    """The report for people."""
    import sys

    from rich.console import Console
    from rich.table import Table

    tested = "test accuracy" in document["best"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "accuracy, %", *(["on test, %"] if tested else []), "prompt"):
        table.add_column(name, justify="right" if "%" in name else "left")
    for name in ("first", "best", "ensemble"):
        entry = document[name]
        numbers = [f"{entry[key]:.1f}" for key in ("accuracy", "test accuracy") if key in entry]
        table.add_row(name, *numbers, "\n".join(entry["prompts"]), style=None)
    console = Console(markup=False)
    console.print(table, highlight=False)
    asked = document["language model"]
    console.print(f"{asked['replies']} replies, {len(document['history'])} prompts evaluated", highlight=False)
    for which in ("skipped", "test skipped"):
        for reason, count in document["pictures"].get(which, {}).items():
            print(f"foveal: {count} rows skipped: {reason}", file=sys.stderr)
    if not document["new prompts"]:
        print("foveal: no reply was a template; try a larger model, --lm openai:URL", file=sys.stderr)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
