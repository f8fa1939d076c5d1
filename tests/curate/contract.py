"""What every method that rewrites shards promises. A new one adds a `Case` to `CASES`; `test_contract.py` runs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveal.curate.base import Watch
from foveal.curate.tldr import Choice
from foveal.curate.tldr_shards import Parts, reduce_shards
from foveal.data.record import Sample


@dataclass(frozen=True)
class Case:
    """One method under test, with cheap stand-ins for its models."""

    name: str
    run: Callable[[Sequence[Path], Path, Watch], tuple[list[Path], dict[str, Any]]]
    """(shards to read, folder to write to, watch) -> the shards that were written, and the report."""
    caption: Callable[[Sample, str], bool]
    """(what went in, the first caption that came out) -> may it be so?"""


def sample(i: int) -> Sample:
    """A picture of one grey value; three kinds of brightness, and a caption that says how good it is."""
    picture = np.full((8, 8, 3), 80 * (i % 3) + i % 5, np.uint8)
    return Sample(f"sample {i}", (picture,), captions=(f"quality {i % 10}", "second"), labels=("grey",), meta={"i": i})


def _tldr(paths: Sequence[Path], out: Path, watch: Watch) -> tuple[list[Path], dict[str, Any]]:
    parts = Parts(
        codes=lambda pictures: np.stack([[picture[0, 0, 0], picture[-1, -1, 0]] for picture in pictures]).astype(int),
        num_codes=256,
        match=lambda pictures, captions: [int(caption.split()[1]) / 10 for caption in captions],
        describe=lambda pictures: [f"grey {picture[0, 0, 0]}" for picture in pictures],
        measured_by="grey eyes",
        described_by="grey mouth",
    )
    reduced = reduce_shards(paths, out, parts, Choice(3, every=2, itm_fraction=0.75), batch_size=7, watch=watch)
    return reduced.shards, reduced.report


CASES = [
    Case("tldr", _tldr, lambda before, caption: caption == f"{before.caption}; grey {before.image[0, 0, 0]}"),
]
