"""Batches for `foveal train clip-like` from shards, a folder or COCO captions, and whether they serve an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from braceexpand import braceexpand
from PIL import Image

from foveal.data.coco import CocoCaptions
from foveal.data.faults import RowReader, SampleError
from foveal.data.folder import ImageFolder
from foveal.data.record import Region, Sample
from foveal.data.webdataset import Cursor, ShardBatches, Shards
from foveal.pretrain.dreamlip import split_caption

Watch = Callable[[str, int, int], None]
LOOKED_AT, OF_EACH = 32, 8
"""Shards whose first samples are looked at before training, and how many of each."""
LEAST_LEFT = 0.5
"""Part of a region that must lie in the square that the model sees."""


def with_text(sample: Sample) -> Sample:
    """Without blank captions. SampleError when there is nothing to learn from."""
    captions = tuple(text for text in sample.captions if text.strip())
    if not sample.images:
        raise SampleError(f"{sample.key}: no picture", "no picture")
    if not captions and not sample.labels:
        raise SampleError(f"{sample.key}: neither caption nor class", "no text")
    return sample.with_(captions=captions)


class TextShards(Shards):
    """The samples of shards that have a picture and a text; the others count as faults."""

    def share(self, part: int, parts: int, start: Cursor = (0, 0)) -> Iterator[tuple[Cursor, Sample]]:
        for cursor, sample in super().share(part, parts, start):
            try:
                found = with_text(sample)
            except SampleError as error:
                self.faults.record(sample.key, error)
            else:
                yield cursor, found


class FullBatches:
    """Batches without the smaller ones at the end of an epoch: contrast depends on how many there are."""

    def __init__(self, batches: ShardBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        resumed, any_full = self.batches.resumed, False
        for batch in self.batches:
            if len(batch["samples"]) == self.batches.batch_size:
                any_full = True
                yield batch
        if not any_full and not resumed:
            size = self.batches.batch_size
            raise ValueError(f"batch_size={size}: the shards have fewer samples for each process; choose a smaller one")

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches.load_state_dict(state)


class SoundRows(Sequence[Sample]):
    """The usable samples of a reader with a length; it is read once to find them."""

    def __init__(self, reader: RowReader, watch: Watch) -> None:
        self.reader, self.rows, self.looked_at = reader, list[int](), list[Sample]()
        reader.faults.begin()
        for row, key in enumerate(reader.keys):
            watch("looking at the data", row, len(reader.keys))
            try:
                sample = with_text(reader.load(row))
            except SampleError as error:
                reader.faults.record(key, error)
            else:
                reader.faults.sound()
                self.rows.append(row)
                self.looked_at.append(sample.with_(images=()))
        reader.faults.finish()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return with_text(self.reader.load(self.rows[index]))


def open_data(names: Sequence[str], images: Path | None, seed: int, watch: Watch) -> tuple[Any, list[Sample]]:
    """A `Shards` or `SoundRows`, and samples of it (without pictures) to judge it by.

    Raises:
        ValueError: for names that are neither shards, nor one folder or one JSON file, and for data that is not there.
    """
    paths = [name for pattern in names for name in braceexpand(pattern)]
    if paths and all(path.endswith(".tar") for path in paths):
        shards = TextShards(paths, seed=seed)
        there = [path for path in shards.paths if path.is_file()][:LOOKED_AT]
        seen: list[Sample] = []
        for done, path in enumerate(there):
            watch("looking at the data", done, len(there))
            seen += [sample.with_(images=()) for sample in islice(TextShards([path]), OF_EACH)]
        return shards, seen
    if len(paths) != 1:
        raise ValueError(f"data={' '.join(names)!r}: give .tar shards, or one folder, or one .json file")
    path = Path(paths[0])
    if path.is_dir():
        found = SoundRows(ImageFolder(path), watch)
    elif path.suffix == ".json":
        found = SoundRows(CocoCaptions(path, images or path.parent), watch)
    else:
        raise ValueError(f"data={paths[0]!r} is no folder here, and no .tar or .json file")
    return found, found.looked_at


def check_fit(objective: str, samples: Iterable[Sample]) -> None:
    """ValueError when an objective cannot use such samples, with what it needs and how to get it."""
    samples = list(samples)
    looked = f"and none of the {len(samples)} samples that were looked at has"
    if objective in ("cloc", "grain") and not any(r.caption or r.label for s in samples for r in s.regions):
        source = (
            "annotate_regions of foveal.pretrain.cloc" if objective == "cloc" else "annotate of foveal.pretrain.grain"
        )
        raise ValueError(
            f"objective={objective!r} needs boxes with a phrase or a class, {looked} any: give shards of samples with "
            f"regions (foveal.data.write_shards); {source} finds them with a captioner and a detector"
        )
    if objective == "dreamlip" and not any(sum(len(split_caption(text)) for text in s.captions) > 1 for s in samples):
        raise ValueError(
            f"objective='dreamlip' needs several sentences for a picture, {looked} more than one: give long captions, "
            "or several; recaption of foveal.pretrain.dreamlip writes them with a captioner"
        )
    if objective == "prefix_conditioning":
        labelled = sum(not sample.captions for sample in samples)
        if labelled in (0, len(samples)):
            kind = "captions and no class alone" if not labelled else "a class and no caption"
            raise ValueError(
                f"objective='prefix_conditioning' needs captioned samples and others that have only a class, but all "
                f"{len(samples)} that were looked at have {kind}: give both kinds, for instance two sets of shards"
            )


class Collate:
    """Samples -> a batch for a learner. ``places``: pictures are cut to the square that the model sees, with boxes."""

    def __init__(self, image_processor: Any, places: bool) -> None:
        self.image_processor, self.places = image_processor, places

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if self.places and "shortest_edge" in dict(getattr(self.image_processor, "size", {}) or {}):
            samples = [centre_square(sample) for sample in samples]
        pictures = [Image.fromarray(sample.image) for sample in samples]
        pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        kept = list(samples) if self.places else [sample.with_(images=()) for sample in samples]
        return {"pixels": pixels, "samples": kept, "__key__": [sample.key for sample in samples]}


def centre_square(sample: Sample) -> Sample:
    """The middle of the picture and the regions that mostly lie there."""
    height, width = sample.image.shape[:2]
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    regions: list[Region] = []
    for region in sample.regions:
        x0, y0, x1, y1 = region.box
        left, top, right, bottom = (
            min(max(edge - shift, 0.0), float(side)) for edge, shift in zip(region.box, (x, y, x, y), strict=True)
        )
        if (right - left) * (bottom - top) >= LEAST_LEFT * (x1 - x0) * (y1 - y0) > 0:
            regions.append(Region((left, top, right, bottom), region.label, region.caption))
    return sample.with_(images=(sample.image[y : y + side, x : x + side],), regions=tuple(regions))
