"""Which of your own labels fits a picture."""

from typing import Annotated

import tyro


def main(
    image: Annotated[str, tyro.conf.Positional], labels: Annotated[str, tyro.conf.Positional], json: bool = False
) -> None:
    """Choose among labels in your own words, without training.

    The labels are compared in meaning with the 1,000 classes of ImageNet that a classifier sees in the picture. Things
    without a class (tulips, rocks, paintings) come out wrong, and so do properties such as colours and numbers.

    Args:
        image: picture file; JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.
        labels: two or more with commas between them, e.g. cat,dog,"sports car".
        json: print one JSON document instead of a table.
    """
    from foveal.cli._pictures import progress, read_picture

    names = [name.strip() for name in labels.split(",") if name.strip()]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"labels={labels!r}: give at least two different ones with commas between them, e.g. cat,dog")
    picture = read_picture(image)
    with progress() as report:
        report("loading", 0, 1)
        from foveal.demo.zero_shot import ZeroShot

        ranked = ZeroShot.load().classify(picture, names)
    if json:
        from foveal.cli import print_json

        rows = [{"label": name, "probability": round(probability, 4)} for name, probability in ranked]
        print_json({"image": image, "labels": rows})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label", style="cyan")
    table.add_column("probability", justify="right")
    table.add_column("")
    for name, probability in ranked:
        table.add_row(Text(name), f"{probability:.1%}", Text("█" * round(30 * probability), style="green"))
    Console().print(table)
