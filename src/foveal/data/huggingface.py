"""Hugging Face datasets as samples: in memory, saved to disk, or from the hub when you ask for it by name.

Rows are taken as Arrow stores them, so that images stay bytes until `read_image` decodes them. The library's own
decoding raises in the middle of an iteration, where one bad image cannot be skipped, and sets no limit to the pixels.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from foveal.data.faults import Faults, RowReader, SampleError, unique_keys
from foveal.data.images import MAX_PIXELS, read_image
from foveal.data.llava_json import conversation_of
from foveal.data.record import Sample

try:
    import datasets
    import pyarrow
except ImportError as error:
    raise ImportError("Hugging Face datasets are read with the library: pip install 'foveal[datasets]'") from error


class HuggingFaceDataset(RowReader):
    """Rows of a dataset as samples. Never touches the network: for that there is `from_hub`.

    Args:
        dataset: a ``datasets.Dataset``, or the folder of one saved with ``save_to_disk``.
        image: column of images (or of lists of images, bytes, or local paths); None if there is none.
        caption: column of a caption or a list of them.
        label: column of a class, or a list of them; numbers of a ``ClassLabel`` become names.
        conversation: column of turns, in either form of `LlavaJson`.
        key: column of names that are kept as keys; the row number if None.
        split: which one, of a saved ``DatasetDict``.
        strict: raise at the first broken row when iterating.
        max_fraction: share of broken rows to put up with, see `Faults`.
        max_pixels: see `read_image`.

    Raises:
        ValueError: when the dataset is none, is empty or a stream, the folder is missing, or a column is.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset | str | os.PathLike[str]",
        *,
        image: str | None = "image",
        caption: str | None = None,
        label: str | None = None,
        conversation: str | None = None,
        key: str | None = None,
        split: str | None = None,
        strict: bool = False,
        max_fraction: float = Faults.max_fraction,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        source = "memory"
        if isinstance(dataset, str | os.PathLike):
            source, dataset = os.fspath(dataset), _from_disk(dataset, split)
        if not isinstance(dataset, datasets.Dataset) or not len(dataset):
            kind = "an empty one" if isinstance(dataset, datasets.Dataset) else type(dataset).__name__
            raise ValueError(f"dataset must be a datasets.Dataset with rows, got {kind}: choose a split, do not stream")
        columns = {"image": image, "caption": caption, "label": label, "conversation": conversation, "key": key}
        for name, column in columns.items():
            if column is not None and column not in dataset.column_names:
                raise ValueError(f"{name}={column!r}: no such column; there are {', '.join(dataset.column_names)}")
        self.image, self.caption, self.label, self.conversation = image, caption, label, conversation
        self.features, self.max_pixels = dataset.features, max_pixels
        used = dict.fromkeys(column for column in columns.values() if column is not None)
        self.rows = dataset.select_columns(list(used)).with_format("arrow")
        self.keys = unique_keys([str(row) for row in (range(len(dataset)) if key is None else dataset[key])])
        self.faults = Faults(f"HuggingFaceDataset({source})", strict, max_fraction)

    @classmethod
    def from_hub(
        cls, repository: str, *, split: str, revision: str | None = None, **columns: Any
    ) -> "HuggingFaceDataset":
        """Download ``repository`` (``"owner/name"``) and read it. This uses the network; code in it is never run.

        Args:
            split: e.g. ``"train"`` or ``"train[:1000]"``.
            revision: commit or tag, to get the same data again.
            columns: arguments of `HuggingFaceDataset`.
        """
        return cls(datasets.load_dataset(repository, split=split, revision=revision), **columns)

    def load(self, index: int) -> Sample:
        key = self.keys[index]
        try:
            row: dict[str, Any] = self.rows[index].to_pylist()[0]
        except (pyarrow.ArrowException, OSError) as error:
            raise SampleError(f"row {key}: unreadable ({error}); save the dataset again", "unreadable row") from error
        pictures = _listed(row[self.image]) if self.image else []
        if self.image and not pictures:
            raise SampleError(f"row {key}: column {self.image!r} holds no image; drop the row", "missing image")
        images = tuple(self._picture(key, picture) for picture in pictures)
        captions = _listed(row[self.caption]) if self.caption else []
        if not all(isinstance(caption, str) for caption in captions):
            raise SampleError(f"row {key}: column {self.caption!r} holds no text: {str(captions)[:60]}")
        labels = self._class_names(key, _listed(row[self.label])) if self.label else []
        record = {"messages": row[self.conversation]} if self.conversation else {}
        turns = conversation_of(record, key, len(images)) if record else ()
        return Sample(key, images=images, captions=tuple(captions), labels=tuple(labels), conversation=turns)

    def _picture(self, key: str, stored: Any) -> UInt8[np.ndarray, "h w 3"]:
        """An image stored as bytes, as a path, or as both."""
        source = stored
        if isinstance(stored, dict):
            source = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
        if not isinstance(source, str | bytes):
            raise SampleError(f"row {key}: column {self.image!r} holds {str(stored)[:40]!r}, no image", "missing image")
        try:
            return read_image(source, max_pixels=self.max_pixels)
        except SampleError as error:
            raise SampleError(f"row {key}: {error}", error.reason) from error

    def _class_names(self, key: str, values: list[Any]) -> list[str]:
        feature = self.features[self.label]
        feature = getattr(feature, "feature", feature)  # of a list
        if not isinstance(feature, datasets.ClassLabel):
            return [str(value) for value in values]
        told = [value for value in values if value not in (None, -1)]  # -1: the library's "not told", as in test splits
        for value in told:
            if not 0 <= value < len(feature.names):
                text = f"row {key}: label {value} is none of the {len(feature.names)} classes; drop the row"
                raise SampleError(text, "unknown class")
        return [feature.names[value] for value in told]


def _from_disk(folder: str | os.PathLike[str], split: str | None) -> Any:
    if not Path(folder).is_dir():
        remedy = "give a folder of save_to_disk, or use HuggingFaceDataset.from_hub to download"
        raise ValueError(f"dataset={os.fspath(folder)!r} is no folder: {remedy}")
    try:
        found = datasets.load_from_disk(os.fspath(folder))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise ValueError(f"dataset={os.fspath(folder)!r} was not written by save_to_disk: {error}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise ValueError(f"split={split!r}: choose one of {', '.join(map(str, found))}")
    return found[split]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
