"""`foveal adapt adaptclipzs`: a CLIP tuned on your labelled pictures and described classes, for classes without any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from foveal.data.images import ImageError


def adaptclipzs(
    model: str,
    train: Path,
    captions: Path,
    classes: Path | None = None,
    test: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("adaptclipzs"),
    shots: int | None = None,
    epochs: int = 15,
    batch_size: int = 256,
    main_lr: float = 1e-7,
    proj_lr: float = 5e-7,
    tau: float = 2.0,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """AdaptCLIPZS: tune a CLIP on pictures of some classes and texts on them, to name others by their texts alone.

    Writes the tuned model, which transformers loads as any CLIP, and report.json. With --test it says how often the
    model was right before and after, apart for classes that it was tuned on (base) and those it was not (novel).

    Args:
        model: nano-clip, a folder made by save_pretrained, or a hub id owner/name; a CLIPModel.
        train: CSV with a header and the columns image (path, relative to the file) and label (name of a class).
        captions: JSON file {class: [whole captions]}, each with the name of the class, such as "a photo of a wren,
            a bird with a short tail".
        classes: text file with a class name a line, of which to choose in the test; default: all of --captions.
        test: CSV like that of --train with other pictures.
        out: folder for the model and the report.
        shots: tune on the first so many pictures of each class; default: on all.
        epochs: visits of each picture, every time cropped anew and with another caption of its class.
        batch_size: pairs of a step.
        main_lr: learning rate of all but the two output projections; the defaults are for large models, nano-clip
            wants some 1e-3.
        proj_lr: of the output projections.
        tau: temperature at the start; the paper has 1.3 for birds, plants and the like, else 2.
        seed: of crops, captions and order.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        json: print report.json instead of a table.
    """
    from foveal.cli._adapt_adaptclipzs_data import class_list, few, labelled, read_captions
    from foveal.cli._pictures import end, progress

    bags = read_captions(captions)
    names = class_list(classes, bags, captions)
    files, labels = few(*labelled(train, "train", bags), shots)
    tests = labelled(test, "test", {name: bags[name] for name in names}) if test else None
    with progress() as watch:
        watch("loading", 0, 1)
        encoder = _clip(model, device)
        errors: dict[Path, ImageError] = {}
        images, labels = _read(files, labels, errors)
        seen = _read(*tests, errors) if tests else None
        index = {name: k for k, name in enumerate(bags)}
        choice = {index[name]: bags[name] for name in names}
        before = _accuracy(encoder, seen, choice, index, set(labels)) if seen else None
        from foveal.adapt.adaptclipzs import BagFineTuner

        settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "main_lr": main_lr, "proj_lr": proj_lr}
        tuner = BagFineTuner(encoder, **settings, tau=tau)
        import torch

        ids, texts = [index[label] for label in labels], {index[name]: bags[name] for name in set(labels)}
        tuner.fit(
            images, ids, texts, torch.Generator().manual_seed(seed), watch=lambda e, of: watch("tuning, epochs", e, of)
        )
        after = _accuracy(tuner.encoder_, seen, choice, index, set(labels)) if seen else None
        report = {"model": model, "pictures": len(images), "base classes": sorted(set(labels)), "classes": names}
        report |= {"settings": settings | {"tau": tau, "seed": seed}, "losses": tuner.losses_, "tau": tuner.tau_}
        report |= {"before": before, "after": after}
        _write(out, tuner.encoder_, report, errors)
    if json:
        from foveal.cli import print_json

        print_json(report)
    else:
        _show(report, out)
    end(errors, len(images) + (len(seen[0]) if seen else 0))


def _clip(model: str, device: str) -> Any:
    from foveal.adapt.adaptclipzs_tuner import as_dual_encoder
    from foveal.evaluate.models import open_model

    opened = open_model(model, device=device, dtype="float32", batch_size=32)
    if opened.kind != "dual encoder":
        raise ValueError(f"model={model!r} is a {opened.kind} model: give a CLIPModel such as nano-clip")
    return as_dual_encoder(opened.model)


def _read(files: list[Path], labels: list[str], errors: dict[Path, ImageError]) -> tuple[list[Any], list[str]]:
    """The readable pictures and their labels; ValueError when there is none."""
    from foveal.cli._pictures import none_readable
    from foveal.data.images import ImageError, read_image

    found, kept = [], []
    own: dict[Path, ImageError] = {}
    for file, label in zip(files, labels, strict=True):
        try:
            found.append(read_image(file))
            kept.append(label)
        except ImageError as error:
            own[file] = error
    if not found:
        raise none_readable(own)
    errors.update(own)
    return found, kept


def _accuracy(
    encoder: Any,
    seen: tuple[list[Any], list[str]],
    choice: dict[int, list[str]],
    index: dict[str, int],
    base: set[str],
) -> dict[str, Any]:
    """Shares of right answers, among all classes to choose of, for pictures of base and of novel classes."""
    from foveal.adapt.adaptclipzs import harmonic_mean
    from foveal.adapt.adaptclipzs_tuner import class_probabilities

    found, keys = class_probabilities(encoder, seen[0], choice).argmax(1).tolist(), list(choice)
    right = [index[label] == keys[k] for label, k in zip(seen[1], found, strict=True)]
    shares: dict[str, Any] = {}
    for name, wanted in (("base", True), ("novel", False)):
        own = [hit for hit, label in zip(right, seen[1], strict=True) if (label in base) == wanted]
        shares[name] = sum(own) / len(own) if own else None
    if None not in shares.values():
        shares["harmonic mean"] = harmonic_mean(shares["base"], shares["novel"])
    return shares


def _write(out: Path, encoder: Any, report: dict[str, Any], errors: dict[Path, ImageError]) -> None:
    import json as json_module

    from foveal.cli._pictures import error_rows
    from foveal.data.files import write_atomically

    folder = out / "model"
    encoder.model.save_pretrained(folder)
    encoder.image_processor.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    report["errors"] = error_rows(errors)
    write_atomically(out / "report.json", (json_module.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first, last = report["losses"][0], report["losses"][-1]
    classes = len(report["base classes"])
    console.print(
        f"{report['pictures']} pictures of {classes} classes, loss {first:.3f} to {last:.3f}", highlight=False
    )
    if report["after"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("right", "before", "after"):
            table.add_column(title, justify="left" if title == "right" else "right")
        for name, value in report["after"].items():
            if value is not None:
                table.add_row(name, f"{report['before'][name]:.1%}", f"{value:.1%}")
        console.print(table)
    for path in (out / "model", out / "report.json"):
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)
