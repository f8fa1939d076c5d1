"""A sentence for each of your pictures."""

from typing import Annotated

import tyro


def main(images: Annotated[list[str], tyro.conf.Positional], json: bool = False) -> None:
    """Caption pictures with real frozen parts that were joined without training.

    Knows the 1,000 classes of ImageNet. A picture of anything else (tulips, rocks, a painting, a person) gets a fluent
    and wrong sentence about the class that looks most like it.

    Files that cannot be read are named; the exit code is then 1, and 2 when none can be read.

    Args:
        images: picture files; JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.
        json: print one JSON document, with the words, classes and all candidates, and what could not be read.
    """
    from foveal.cli._pictures import end, error_rows, progress, read_pictures

    pictures, errors = read_pictures(images)
    rows = []
    with progress() as report:
        from foveal.demo.eyes import Eyes

        eyes = Eyes.load(report)
        for done, (name, picture) in enumerate(pictures.items()):
            report("writing captions", done, len(pictures))
            candidates = eyes.captions(picture)
            rows.append(
                {
                    "image": name,
                    "caption": candidates[0][0] if candidates else "",
                    "words": eyes.words(picture),
                    "classes": [{"name": n, "probability": round(p, 4)} for n, p in eyes.labels(picture)],
                    "candidates": [{"text": text, "cosine": round(score, 4)} for text, score in candidates],
                }
            )
    if json:
        from foveal.cli import print_json

        print_json({"captions": rows, "errors": error_rows(errors)})
    else:
        _print_rows(rows)
    end(errors, len(pictures))


def _print_rows(rows: list) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for row in rows:
        if len(rows) > 1:
            console.print(Text(row["image"], style="cyan"), soft_wrap=True)
        classes = ", ".join(f"{c['name']} {c['probability']:.0%}" for c in row["classes"])
        console.print(Text(row["caption"] or "(no caption)", style="bold"), soft_wrap=True)
        console.print(Text(f"words: {', '.join(row['words'])}   classes: {classes}", style="dim"), soft_wrap=True)
