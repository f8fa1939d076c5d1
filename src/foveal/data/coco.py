"""COCO captions and instances: one JSON file of annotations, one folder of images.

Masks come as polygons or as run lengths, plain or in COCO's compressed text; all become boolean arrays.
"""

import json
import logging
import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from skimage.draw import polygon

from foveal.data.faults import Faults, RowReader, SampleError, unique_keys
from foveal.data.images import MAX_PIXELS, file_in, read_image
from foveal.data.record import Region, Sample

LOG = logging.getLogger(__name__)
Json = Mapping[str, Any]


class CocoReader(RowReader):
    """What the two readers share: images as rows, each with its annotations. Keys are file names.

    Args:
        annotations: the JSON file.
        images: the folder that the ``file_name`` entries are in; none may lead out of it.
        strict: raise at the first broken sample when iterating.
        max_fraction: share of broken samples to put up with, see `Faults`.
        max_pixels: see `read_image`.

    Raises:
        ValueError: when the file is not COCO JSON, or lists no images; under ``strict`` also when an annotation
            belongs to no listed image (without it one warning says how many such were ignored).
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        strict: bool = False,
        max_fraction: float = Faults.max_fraction,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.images, self.max_pixels = Path(images), max_pixels
        content = read_json(Path(annotations))
        lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
        if not all(isinstance(entries, list) for entries in lists) or not lists[0]:
            text = f"annotations={os.fspath(annotations)!r} has no lists of 'images' and 'annotations'"
            raise ValueError(f"{text}: give COCO JSON with at least one image")
        self.category_entries: Any = content.get("categories")
        self.records: list[Any] = content["images"]
        self.annotations: dict[Any, list[Json]] = {_id(record): [] for record in self.records}
        strays = [entry for entry in content["annotations"] if not self._file(entry)]
        if strays:
            text = (
                f"{os.fspath(annotations)}: {len(strays)} annotations name no listed image, first {str(strays[0])[:99]}"
            )
            if strict:
                raise ValueError(f"{text}; remove them or pass strict=False")
            LOG.warning("%s: ignored", text)
        self.keys = unique_keys([_file_name(record) or f"images[{row}]" for row, record in enumerate(self.records)])
        self.faults = Faults(f"{type(self).__name__}({os.fspath(annotations)})", strict, max_fraction)

    def _file(self, entry: Any) -> bool:
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image, int | str) or image not in self.annotations:
            return False
        self.annotations[image].append(entry)
        return True

    def load(self, index: int) -> Sample:
        record, key = self.records[index], self.keys[index]
        name, identity = _file_name(record), _id(record)
        if name is None or identity is None:
            raise SampleError(
                f"{key}: an image needs an 'id' and a 'file_name', got {str(record)[:99]}; repair the JSON"
            )
        image = read_image(file_in(self.images, name), max_pixels=self.max_pixels)
        sample = Sample(key, images=(image,), meta={"image_id": identity})
        try:
            return self.annotate(sample, record, self.annotations[identity])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, SampleError):
                raise
            detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise SampleError(f"{key}: malformed annotation: {detail}; repair the JSON") from error

    @abstractmethod
    def annotate(self, sample: Sample, record: Json, annotations: Sequence[Json]) -> Sample:
        """The sample with its annotations."""


class CocoCaptions(CocoReader):
    """Images with their captions, in the order of the file."""

    def annotate(self, sample: Sample, record: Json, annotations: Sequence[Json]) -> Sample:
        captions = [entry["caption"] for entry in annotations]
        for caption in captions:
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"caption {caption!r} is not a text")
        return sample.with_(captions=tuple(caption.strip() for caption in captions))


class CocoInstances(CocoReader):
    """Images with objects as regions (box, class name, mask); ``labels`` are the classes present, in order of naming.

    A crowd (``iscrowd``: one box around many objects) is no object: ``meta["crowd"]`` lists box and label of each.

    A sample whose file and annotation disagree on its size is a fault: the boxes would be in the wrong places.

    Args:
        masks: also make the masks (height · width bytes for each object).
    """

    def __init__(
        self, annotations: str | os.PathLike[str], images: str | os.PathLike[str], *, masks: bool = True, **options: Any
    ) -> None:
        super().__init__(annotations, images, **options)
        self.masks = masks
        try:
            self.categories: dict[Any, str] = {entry["id"]: str(entry["name"]) for entry in self.category_entries}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"annotations={os.fspath(annotations)!r}: 'categories' needs entries of id and name"
            ) from error

    def annotate(self, sample: Sample, record: Json, annotations: Sequence[Json]) -> Sample:
        height, width = sample.image.shape[:2]
        stated = record.get("height", height), record.get("width", width)
        if stated != (height, width):
            text = (
                f"{sample.key}: the file has {height} × {width} pixels, its annotation says {stated[0]} × {stated[1]}"
            )
            raise SampleError(f"{text}; annotate the upright image", "size differs from annotation")
        objects: list[Region] = []
        crowd: list[Json] = []
        for entry in annotations:
            if entry["category_id"] not in self.categories:
                raise ValueError(f"category_id {entry['category_id']!r} is not among the categories")
            box, label = _box(entry["bbox"]), self.categories[entry["category_id"]]
            if entry.get("iscrowd"):
                crowd.append({"box": box, "label": label})
                continue
            mask = mask_of(entry["segmentation"], height, width) if self.masks and entry.get("segmentation") else None
            objects.append(Region(box, label=label, mask=mask))
        labels = tuple(dict.fromkeys(region.label for region in objects if region.label is not None))
        meta = {**sample.meta, "crowd": crowd}
        return sample.with_(regions=tuple(objects), labels=labels, meta=meta)


def mask_of(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Mask of a COCO ``segmentation``: a list of polygons (their union), or run lengths ``{"size", "counts"}``.

    A pixel belongs to a polygon when its centre does.

    Raises:
        ValueError: when it is neither, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"mask of size {segmentation['size']} on an image of {height} × {width}")
        counts = segmentation["counts"]
        return _from_runs(run_lengths(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), dtype=bool)
    for flat in segmentation:
        points = np.asarray(flat, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"polygon {str(flat)[:60]} is not x0, y0, x1, y1, x2, y2, …")
        rows, columns = polygon(points[1::2] - 0.5, points[::2] - 0.5, shape=mask.shape)
        mask[rows, columns] = True
    return mask


def run_lengths(text: str) -> list[int]:
    """Decode COCO's compressed run lengths.

    Each number is written low bits first in characters from ``0`` on: 5 bits of value, then one that says that more
    follow; the top bit of the last one is the sign. From the fourth on, a number is the difference to the one before
    the previous.

    Raises:
        ValueError: on other characters, or when the text ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError(f"compressed run lengths hold {character!r} at a place where it means nothing")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return runs


def read_json(path: Path) -> Any:
    """Content of a JSON file; ValueError naming the file when it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"cannot read {path}: {reason}; give a JSON file") from error


def _from_runs(runs: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Runs of zeros and ones in turn, zeros first, down the columns."""
    lengths = np.asarray(runs, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or (lengths > height * width).any() or lengths.sum() != height * width:
        raise ValueError(f"run lengths do not add up to {height} × {width} pixels")
    values = np.arange(len(lengths)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height).T)


def _box(bbox: Any) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of x, y, width, height."""
    x, y, width, height = (float(number) for number in bbox)
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError(f"bbox {bbox} is not x, y, width > 0, height > 0")
    return x, y, x + width, y + height


def _id(record: Any) -> int | str | None:
    identity = record.get("id") if isinstance(record, dict) else None
    return identity if isinstance(identity, int | str) else None


def _file_name(record: Any) -> str | None:
    name = record.get("file_name") if isinstance(record, dict) else None
    return name if isinstance(name, str) and name else None
