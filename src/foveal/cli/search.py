"""Pictures of a folder that fit a text."""

from typing import Annotated

import tyro


def main(
    folder: Annotated[str, tyro.conf.Positional],
    text: Annotated[str, tyro.conf.Positional],
    k: int = 5,
    json: bool = False,
) -> None:
    """Search the pictures in a folder and below it. Later searches look only at pictures that are new.

    Finds what the 1,000 classes of ImageNet know. Things without a class (tulips, rocks, paintings), colours, numbers
    and people's names cannot be searched for.

    Files that cannot be read are named; the exit code is then 1, and 2 when none can be read.

    Args:
        folder: where the pictures are.
        text: what you look for, e.g. "a cup of coffee".
        k: how many pictures.
        json: print one JSON document instead of a table.
    """
    from foveal.cli._pictures import end, error_rows, none_readable, progress
    from foveal.data.images import image_files

    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    if not text.strip():
        raise ValueError(f"text={text!r} is empty: say what to look for")
    if not image_files(folder):
        raise ValueError(f"folder={folder!r} holds no pictures: give a folder of JPEG, PNG or other image files")
    with progress() as report:
        report("loading", 0, 1)
        from foveal.demo.search import index_folder
        from foveal.demo.zero_shot import ZeroShot

        zero_shot = ZeroShot.load()
        index = index_folder(folder, zero_shot, report)
        found = index.search(zero_shot, text, k)
    if not index.paths:
        raise none_readable(index.skipped)
    if json:
        from foveal.cli import print_json

        rows = [{"image": str(path), "score": round(score, 4)} for path, score in found]
        print_json({"text": text, "pictures": len(index.paths), "found": rows, "errors": error_rows(index.skipped)})
    else:
        _print_found(found)
    end(index.skipped, len(index.paths))


def _print_found(found: list) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for path, score in found:
        console.print(Text(f"{score:6.1f}  ", style="dim") + Text(str(path), style="cyan"), soft_wrap=True)
