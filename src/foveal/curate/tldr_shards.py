"""TL;DR on shards of any number: two passes, of which the second describes only what is kept.

What looks at the pictures comes in as three functions, so that any captioner with a codebook, any matcher and any
describer will do: codes of a picture, a score of picture and caption, a caption.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from foveal.curate.base import Measured, Watch, check_apart, measure_shards, rewrite_shards, samples_at
from foveal.curate.tldr import KEPT, MISMATCHED, REDUNDANT, Choice, Chosen, choose, refine_caption
from foveal.data.record import Sample

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]


@dataclass(frozen=True)
class Parts:
    """What looks at the pictures.

    Attributes:
        codes: pictures -> T codes each.
        num_codes: size of the codebook.
        match: pictures and their captions -> scores, higher for those that fit.
        describe: pictures -> captions; None appends nothing.
        measured_by: says which models ``codes`` and ``match`` are; numbers of others are not reused.
        described_by: says the same of ``describe``.
    """

    codes: Callable[[Pictures], Int[np.ndarray, "b t"]]
    num_codes: int
    match: Callable[[Pictures, Sequence[str]], Float[np.ndarray, " b"]]
    describe: Callable[[Pictures], Sequence[str]] | None
    measured_by: str
    described_by: str = ""


@dataclass(frozen=True)
class Example:
    """A sample to show: why it was kept or not, its picture and captions, its score, and who stands for it."""

    reason: str
    picture: UInt8[np.ndarray, "_ _ 3"]
    caption: str
    itm: float
    instead: UInt8[np.ndarray, "_ _ 3"] | None = None
    """Of a redundant one: the picture of its cluster that was kept, if one was."""


@dataclass(frozen=True)
class Reduced:
    """The written shards, the report (JSON-able) and some examples for each reason."""

    shards: list[Path]
    report: dict[str, Any]
    examples: list[Example]


def reduce_shards(
    paths: Sequence[Path],
    out: Path,
    parts: Parts,
    choice: Choice,
    *,
    seed: int = 0,
    batch_size: int = 64,
    sep: str = "; ",
    samples_per_shard: int = 1000,
    jpeg_quality: int | None = None,
    examples: int = 6,
    watch: Watch = lambda what, done, total: None,
) -> Reduced:
    """Reduce ``paths`` to shards in ``out``; a killed call goes on with the shard it was in when it is repeated.

    A kept sample has its refined caption first and everything else as it was, and in ``meta["tldr"]`` its cluster, its
    score and the original caption.

    Args:
        seed: of the clusters' start and of what ``choice.fraction`` draws.
        examples: how many to show for each reason.

    Raises ValueError when nothing can be read, or nothing is left.
    """
    check_apart(paths, out)
    work = out / ".work"

    def measure(samples: Sequence[Sample]) -> dict[str, Any]:
        pictures = [sample.image for sample in samples]
        scores = parts.match(pictures, [sample.caption for sample in samples])
        return {"codes": np.asarray(parts.codes(pictures)), "itm": np.asarray(scores, dtype=np.float32)}

    measured = measure_shards(paths, work, measure, stamp=parts.measured_by, batch_size=batch_size, watch=watch)
    codes, itm = (torch.from_numpy(measured.values[name]) for name in ("codes", "itm"))
    chosen = choose(codes, itm, choice, torch.Generator().manual_seed(seed), parts.num_codes)
    if not len(chosen.keep):
        raise ValueError(f"nothing is left of {len(measured)} samples: {chosen.report['reasons']}; keep more")

    def change(samples: Sequence[Sample], numbers: Sequence[int]) -> list[Sample]:
        pictures = [sample.image for sample in samples]
        said = parts.describe(pictures) if parts.describe else [""] * len(samples)
        changed = []
        for sample, number, text in zip(samples, numbers, said, strict=True):
            about = {"cluster": int(chosen.labels[number]), "itm": float(itm[number]), "original": sample.caption}
            captions = (refine_caption(sample.caption, text, sep), *sample.captions[1:])
            changed.append(sample.with_(captions=captions, meta={**sample.meta, "tldr": about}))
        return changed

    settings = {**asdict(choice), "seed": seed, "sep": sep}
    decided = hashlib.sha256(codes.numpy().tobytes() + itm.numpy().tobytes()).hexdigest()
    written = rewrite_shards(
        paths,
        out,
        work,
        _by_shard(measured, chosen),
        change,
        stamp=json.dumps([parts.measured_by, parts.described_by, settings, decided]),
        batch_size=batch_size,
        samples_per_shard=samples_per_shard,
        jpeg_quality=jpeg_quality,
        watch=watch,
    )
    report = {
        "method": "tldr",
        **chosen.report,
        "skipped": measured.skipped,
        "meta left out": written.left_out,
        "settings": {**settings, "codes and scores by": parts.measured_by, "captions by": parts.described_by},
        "shards": [path.name for path in written.paths],
    }
    picked = _picked(chosen, codes, itm, examples)
    return Reduced(written.paths, report, _examples(paths, measured, chosen, itm, picked, change))


def _by_shard(measured: Measured, chosen: Chosen) -> dict[int, dict[int, int]]:
    kept = defaultdict[int, dict[int, int]](dict)
    for number in chosen.keep.tolist():
        kept[int(measured.shard[number])][int(measured.row[number])] = number
    return dict(kept)


def _picked(
    chosen: Chosen, codes: Int[torch.Tensor, "n t"], itm: Float[torch.Tensor, " n"], count: int
) -> list[tuple[int, int | None]]:
    """Samples to show, a redundant one with the kept one of its cluster that shares most codes in place with it.

    Of the mismatched the worst, of others an even choice.
    """
    filled = set(chosen.labels[chosen.keep].tolist())

    def nearest(number: int) -> int | None:
        mates = chosen.keep[chosen.labels[chosen.keep] == chosen.labels[number]]
        return int(mates[(codes[mates] == codes[number]).sum(1).argmax()]) if len(mates) else None

    picked: list[tuple[int, int | None]] = []
    for reason in (KEPT, REDUNDANT, MISMATCHED):
        numbers = [number for number, found in enumerate(chosen.reasons) if found == reason]
        if reason == MISMATCHED:
            numbers = sorted(numbers, key=lambda number: float(itm[number]))[:count]
        if reason == REDUNDANT:
            numbers = [number for number in numbers if int(chosen.labels[number]) in filled] or numbers
        step = max(1, len(numbers) // max(count, 1))
        for number in numbers[::step][:count]:
            picked.append((number, nearest(number) if reason == REDUNDANT else None))
    return picked


def _examples(
    paths: Sequence[Path],
    measured: Measured,
    chosen: Chosen,
    itm: Float[torch.Tensor, " n"],
    picked: Sequence[tuple[int, int | None]],
    change: Callable[[Sequence[Sample], Sequence[int]], Sequence[Sample]],
) -> list[Example]:
    wanted = sorted({number for pair in picked for number in pair if number is not None})
    places = [(int(measured.shard[number]), int(measured.row[number])) for number in wanted]
    samples = dict(zip(wanted, samples_at(paths, places), strict=True))
    kept = [number for number, _ in picked if chosen.reasons[number] == KEPT]
    refined = dict(zip(kept, change([samples[number] for number in kept], kept), strict=True))
    return [
        Example(
            chosen.reasons[number],
            samples[number].image,
            refined.get(number, samples[number]).caption,
            float(itm[number]),
            None if other is None else samples[other].image,
        )
        for number, other in picked
    ]
