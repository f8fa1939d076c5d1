"""`foveal adapt dclip`: your classes, described in words that you can read and edit, found in your pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from foveal.data.images import ImageError

Watch = Callable[[str, int, int], None]


def dclip(
    model: str,
    images: Path,
    classes: Path | None = None,
    descriptors: Path | None = None,
    lm: str | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("dclip"),
    max_new_tokens: int = 100,
    suffix: str = "",
    reduce: Literal["mean", "max"] = "mean",
    pictures: int = 50,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    json: bool = False,
) -> None:
    """Classification by description: a language model says what your classes look like, a CLIP finds that in pictures.

    Writes descriptors.json, predictions.json and, for each picture, one on which the descriptors are drawn. Edit
    descriptors.json and run the command again: it keeps what is there, and asks only for classes that have none.

    Args:
        model: nano-clip, a folder made by save_pretrained, or a hub id owner/name; a CLIP, SigLIP or their like.
        images: folder of pictures, or one picture.
        classes: text file with a class name a line; by default those of --descriptors.
        descriptors: JSON file {class: [descriptors]}, as the paper's authors released them.
        lm: who describes the classes that have no descriptors: smollm2, openai:URL[#model] (key: $OPENAI_API_KEY) or
            scripted:FILE.json. Default: smollm2 without --descriptors, else nobody, and such classes are an error.
        out: folder for what is written.
        max_new_tokens: longest answer of the language model.
        suffix: at the end of every text, such as "."
        reduce: mean of a class's descriptors, or the best one alone.
        pictures: draw at most so many.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's own on a GPU, else float32.
        json: print predictions.json instead of a table.
    """
    from foveal.cli._adapt_dclip_words import class_names, describe, given
    from foveal.cli._pictures import end, progress

    if max_new_tokens < 1 or pictures < 0:
        name, value = ("max_new_tokens", max_new_tokens) if max_new_tokens < 1 else ("pictures", pictures)
        raise ValueError(f"{name}={value}: must be at least {int(name == 'max_new_tokens')}")
    names = class_names(classes, descriptors)
    table = given(names, descriptors, out)
    with progress() as watch:
        files = _files(images)
        encoder, opened = _encoder(model, batch_size, device, dtype)
        table, asked = describe(table, lm if lm or descriptors else "smollm2", out, max_new_tokens, watch)
        rows, errors = _features(encoder, files, batch_size, watch)
        document = _explained(encoder, table, list(rows), list(rows.values()), suffix, reduce)
        document = {"model": opened, **document, "language model": asked}
        document = _written(out, images, document, errors, pictures, watch)
    if json:
        from foveal.cli import print_json

        print_json(document)
    else:
        from foveal.cli._adapt_dclip_show import show

        show(document, out)
    end(errors, len(rows))


def _files(images: Path) -> list[Path]:
    from foveal.data.images import image_files

    files = image_files(images) if not images.is_file() else [images]
    if not files:
        raise ValueError(f"images={str(images)!r} holds no image file: give the folder above the images")
    return files


def _encoder(model: str, batch_size: int, device: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A dual encoder, and what a report must say about it."""
    from foveal.evaluate.models import open_model

    opened = open_model(model, device=device, dtype=dtype, batch_size=batch_size)
    if opened.kind != "dual encoder":
        raise ValueError(f"model={model!r} is a {opened.kind} model: give a dual encoder such as nano-clip")
    return opened.model, {"name": opened.name, "class": opened.class_name, "sha256": opened.sha256}


def _features(
    encoder: Any, files: Sequence[Path], batch_size: int, watch: Watch
) -> tuple[dict[Path, Any], dict[Path, ImageError]]:
    """Features of each readable picture, and why the others are not. ValueError when there is none."""
    from foveal.cli._pictures import none_readable
    from foveal.data.images import ImageError, read_image

    found: dict[Path, Any] = {}
    errors: dict[Path, ImageError] = {}
    for start in range(0, len(files), batch_size):
        watch("looking at pictures", start, len(files))
        batch = {}
        for file in files[start : start + batch_size]:
            try:
                batch[file] = read_image(file)
            except ImageError as error:
                errors[file] = error
        if batch:
            found.update(zip(batch, encoder.image_features(list(batch.values())), strict=True))
    if not found:
        raise none_readable(errors)
    return found, errors


def _explained(
    encoder: Any,
    table: dict[str, list[str]],
    files: Sequence[Path],
    rows: Sequence[Any],
    suffix: str,
    reduce: Literal["mean", "max"],
) -> dict[str, Any]:
    """What is seen in each picture and why, for JSON."""
    from foveal.adapt.dclip import DescriptionClassifier

    found = DescriptionClassifier(lambda x: x, encoder.text_features, table, reduce=reduce, suffix=suffix)
    seen = []
    for file, row in zip(files, rows, strict=True):
        why = found.explain(row)
        seen.append(
            {
                "image": str(file),
                "class": why.class_name,
                "score": round(why.score, 4),
                "descriptors": [{"text": text, "similarity": round(value, 4)} for text, value in why.items],
                "name alone": {"class": why.baseline_class, "score": round(why.baseline_score, 4)},
            }
        )
    return {"reduce": reduce, "suffix": suffix, "descriptors": table, "images": seen}


def _written(
    out: Path, images: Path, document: dict[str, Any], errors: dict[Path, ImageError], most: int, watch: Watch
) -> dict[str, Any]:
    """The drawn pictures and predictions.json; returns what stands in the latter."""
    import json as json_module

    from foveal.cli._adapt_dclip_show import drawn
    from foveal.cli._pictures import error_rows
    from foveal.data.files import write_atomically

    root = images.parent if images.is_file() else images
    shown = document["images"][:most]
    for number, row in enumerate(shown):
        watch("drawing", number, len(shown))
        place = out / "pictures" / Path(row["image"]).relative_to(root)
        row["picture"] = str(place.with_name(f"{place.name}.png"))
        write_atomically(Path(row["picture"]), drawn(row))
    document = {**document, "errors": error_rows(errors)}
    text = json_module.dumps(document, indent=1, ensure_ascii=False) + "\n"
    write_atomically(out / "predictions.json", text.encode())
    return document
