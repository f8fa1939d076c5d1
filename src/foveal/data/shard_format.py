"""One `Sample` as the files of a shard, and back.

Pictures are ``jpg``, ``png`` … or ``0.jpg``, ``1.jpg`` …, captions ``txt`` or ``0.txt`` …, the class name ``cls``: any
WebDataset tool understands these. What else a sample knows is in ``foveal.json`` and in pictures and arrays beside it.
In shards of others, ``json``, ``npy`` and further pictures are decoded into ``meta`` under their suffix, and all the
rest stays bytes there: nothing is ever unpickled.
"""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from foveal.data.faults import SampleError
from foveal.data.images import SUFFIXES, read_image
from foveal.data.record import Question, Region, Sample, Turn

OWN = "foveal.json"
Files = Mapping[str, bytes]


def decode_sample(key: str, files: Files, max_pixels: int) -> Sample:
    """Sample of the files of one key, suffix -> content.

    Raises:
        SampleError: when an image is broken, or a text or array malformed.
    """
    known, meta = dict[str, Any](), dict[str, Any]()
    images, captions, labels = [], [], []
    for suffix, content in files.items():
        value = _decoded(f"{key}.{suffix}", suffix, content, max_pixels)
        kind = re.sub(r"^\d+\.", "", suffix)
        if suffix == OWN or re.fullmatch(r"mask\.\d+\.png|semantic\.png|depth\.npy", suffix):
            known[suffix] = value
        elif f".{kind}" in SUFFIXES:
            images.append(value)
        elif kind == "txt":
            captions.append(value)
        elif suffix == "cls":
            labels.append(value)
        else:
            meta[suffix] = value
    sample = Sample(key, tuple(images), captions=tuple(captions), labels=tuple(labels), meta=meta)
    if OWN not in known:
        return sample.with_(meta={**meta, **known})
    try:
        return _with_own(sample, known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SampleError(f"{key}.{OWN}: malformed ({error!r}); write the shard again") from error


def encode_sample(sample: Sample, jpeg_quality: int | None) -> dict[str, bytes]:
    """The files of a sample, suffix -> content; images as PNG, or as JPEG of a quality.

    Raises:
        ValueError: when ``meta`` holds what JSON does not take.
    """
    files: dict[str, bytes] = {}
    # padded, because the writer sorts by suffix; WebDataset's plain "png" and "txt" when there is only one
    ending, options = ("png", {}) if jpeg_quality is None else ("jpg", {"quality": jpeg_quality})
    for place, image in enumerate(sample.images):
        files[ending if len(sample.images) == 1 else f"{place:04d}.{ending}"] = _picture(image, **options)
    for place, caption in enumerate(sample.captions):
        files["txt" if len(sample.captions) == 1 else f"{place:04d}.txt"] = caption.encode()
    for place, region in enumerate(sample.regions):
        if region.mask is not None:
            files[f"mask.{place:04d}.png"] = _picture(region.mask.astype(np.uint8) * 255)
    if sample.semantic is not None:
        files["semantic.png"] = _picture(sample.semantic)
    if sample.depth is not None:
        buffer = io.BytesIO()
        np.save(buffer, sample.depth, allow_pickle=False)
        files["depth.npy"] = buffer.getvalue()
    own = {
        "key": sample.key,
        "labels": sample.labels,
        "regions": [{"box": region.box, "label": region.label, "caption": region.caption} for region in sample.regions],
        "questions": [dataclasses.asdict(question) for question in sample.questions],
        "conversation": [dataclasses.asdict(turn) for turn in sample.conversation],
        "meta": dict(sample.meta),
    }
    try:
        files[OWN] = json.dumps(own).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sample {sample.key!r}: meta must be JSON-able ({error}); drop or convert the entry"
        ) from error
    return files


def _with_own(sample: Sample, known: Mapping[str, Any]) -> Sample:
    own = known[OWN]
    masks = {
        int(suffix.split(".")[1]): mask[..., 0] > 127 for suffix, mask in known.items() if suffix.startswith("mask.")
    }
    regions = []
    for place, entry in enumerate(own["regions"]):
        x0, y0, x1, y1 = map(float, entry["box"])
        regions.append(Region((x0, y0, x1, y1), entry["label"], entry["caption"], masks.get(place)))
    questions = [Question(entry["text"], tuple(entry["answers"]), entry["kind"]) for entry in own["questions"]]
    semantic = known.get("semantic.png")
    return Sample(
        str(own["key"]),
        images=sample.images,
        captions=sample.captions,
        labels=tuple(map(str, own["labels"])),
        regions=tuple(regions),
        questions=tuple(questions),
        conversation=tuple(Turn(entry["role"], entry["text"]) for entry in own["conversation"]),
        semantic=None if semantic is None else np.ascontiguousarray(semantic[..., 0]),
        depth=known.get("depth.npy"),
        meta=dict(own["meta"]),
    )


def _decoded(name: str, suffix: str, content: bytes, max_pixels: int) -> Any:
    last = suffix.rsplit(".", 1)[-1]
    if f".{last}" in SUFFIXES:
        try:
            return read_image(content, max_pixels=max_pixels)
        except SampleError as error:
            raise SampleError(f"{name}: {error}", error.reason) from error
    if last not in DECODERS:
        return content
    try:
        return DECODERS[last](content)
    except Exception as error:  # hostile bytes: a parser may fail in any way, a header may claim all memory
        raise SampleError(f"{name}: malformed {last} ({error!r}); write the shard again") from error


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig").strip()


def _array(content: bytes) -> Shaped[np.ndarray, "..."]:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _picture(image: UInt8[np.ndarray, "h w *rgb"], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG" if options else "PNG", **options)
    return buffer.getvalue()


DECODERS: dict[str, Callable[[bytes], Any]] = {"txt": _text, "cls": _text, "json": json.loads, "npy": _array}
