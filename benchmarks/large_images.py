"""Memory and time of reading large pictures: ``python benchmarks/large_images.py [--sizes 4096,8192,16384]``.

Every figure comes from a fresh process. "windows" goes down the pyramid of `foveal.compress.lrs` to the picture's own
resolution, at most ``--tiles`` of 336 px a level after the first, which a rule chooses; a model's own memory would come
on top. "whole" is what decoding the picture takes with Pillow. Memory is the growth of the peak resident set.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMATS = ("png", "tif")


def write(path: Path, size: int) -> None:
    """A pattern without two tiles alike, row by row."""
    import pyvips

    place = pyvips.Image.xyz(size, size)
    across, down = place[0], place[1]
    bands = [(across / 16) % 256, (down / 16) % 256, (across / 256 * 8 + down / 256) % 256]
    picture = bands[0].bandjoin(bands[1:]).cast("uchar").copy(interpretation="srgb")
    if path.suffix == ".tif":
        picture.tiffsave(str(path), tile=True, tile_width=256, tile_height=256)
    else:
        picture.pngsave(str(path), compression=1)


def peak() -> float:
    """Megabytes that the process held at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def descend(path: Path, tiles: int) -> int:
    """Read down to the last level; the number of tiles, with the thumbnail."""
    import torch

    from foveal.compress.lrs import LazyPyramid, coarse_to_fine
    from foveal.data.windows import PictureFile

    pyramid = LazyPyramid(PictureFile(path), (0.5,) * 3, (0.5,) * 3)

    def encode(read):
        return torch.nn.functional.adaptive_avg_pool2d(read, 4).flatten(2).transpose(1, 2)

    def score(tokens, valid, level):
        return -(tokens[:, 0] - 0.7).abs() - (tokens[:, 1] - 0.3).abs()

    zero = torch.zeros(1, dtype=torch.long)
    encode(pyramid[0][zero, zero])
    found = coarse_to_fine(
        pyramid, pyramid.plan, encode, score, side=4, keep_ratio=0.1, max_level=len(pyramid.plan), max_tiles=tiles
    )
    assert found.level == len(pyramid.plan) - 1
    return 1 + found.tiles_encoded


def whole(path: Path) -> int:
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return int(np.asarray(Image.open(path).convert("RGB")).shape[0] > 0)


def measure(way: str, path: Path, small: Path, tiles: int) -> dict[str, float]:
    """After a small picture has loaded libraries and started threads."""
    read = (lambda at: descend(at, tiles)) if way == "windows" else whole
    read(small)
    before, started = peak(), time.perf_counter()
    encoded = read(path)
    return {"tiles": encoded, "MB": peak() - before, "seconds": time.perf_counter() - started}


def cells(row: dict[str, Any]) -> list[str]:
    """As they are printed."""
    windows, whole = row["windows"], row["whole"]
    return [
        row["picture"],
        f"{row['file MB']:,.0f}",
        f"{row['pixels MB']:,.0f}",
        f"{windows['tiles']}",
        f"{windows['MB']:,.0f}",
        f"{windows['seconds']:.1f}",
        f"{whole['MB']:,.0f}",
        f"{whole['seconds']:.1f}",
    ]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="2048,4096,8192,16384", help="pixels a side")
    parser.add_argument("--tiles", type=int, default=8, help="of a level after the first, at most")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path, small = options.one
        print(json.dumps(measure(way, Path(path), Path(small), options.tiles)))
        return
    table = Table(title=f"at most {options.tiles} tiles of a level after the first; MB above a picture of 256 pixels")
    for header in ("picture", "file MB", "pixels MB", "tiles", "windows MB", "seconds", "whole MB", "seconds "):
        table.add_column(header, justify="left" if header == "picture" else "right")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            small = Path(folder) / f"small.{kind}"
            write(small, 256)
            for size in map(int, options.sizes.split(",")):
                path = Path(folder) / f"picture.{kind}"
                write(path, size)
                command = [sys.executable, __file__, f"--tiles={options.tiles}", "--one"]
                windows, decoded = (
                    json.loads(subprocess.run([*command, way, path, small], capture_output=True, check=True).stdout)
                    for way in ("windows", "whole")
                )
                sizes = {"file MB": path.stat().st_size / 1e6, "pixels MB": 3 * size**2 / 1e6}
                rows.append({"picture": f"{size:,} × {size:,} {kind}", **sizes, "windows": windows, "whole": decoded})
                table.add_row(*cells(rows[-1]))
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps({"tiles": options.tiles, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
