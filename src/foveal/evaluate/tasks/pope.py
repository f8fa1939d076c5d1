"""POPE on its official files: one JSON object a line with ``question_id``, ``image``, ``text`` and ``label``.

Li et al., EMNLP 2023, arXiv 2305.10355. The repository's files are named ``coco_pope_random.json`` and so on; a folder
of them is evaluated file by file, under the last word of each name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveal.evaluate.base import Item, Json, Metric, Scored, Setting, Task, share
from foveal.evaluate.models.recorded import json_records
from foveal.evaluate.tasks.asking import asker, image_file, is_either
from foveal.evaluate.tasks.existence import SCORER, judged, pope_metrics

_FIELDS = ("image", "text", "label")


def items(setting: Setting) -> list[Item]:
    """The first n questions of the file, or of each file of the folder, in their order.

    ValueError: a field is missing, or a label is neither yes nor no.
    """
    place = Path(str(setting.data))
    files = sorted([*place.glob("*.json"), *place.glob("*.jsonl")]) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"data={str(place)!r} holds no .json file: give a POPE file, or a folder of them")
    found = []
    for path in files:
        split = path.stem.rsplit("_", 1)[-1] if len(files) > 1 else ""
        for number, record in enumerate(json_records(path), 1):
            if number > setting.n:
                break
            values = [record.get(name) for name in _FIELDS]
            if not all(isinstance(value, str) for value in values) or record["label"].lower() not in ("yes", "no"):
                raise ValueError(f"{path}: entry {number} needs image, text and a label yes or no: {str(record)[:99]}")
            identity = str(record.get("question_id", number))
            truth = {"answer": record["label"].lower(), "split": split, "id": identity, "image": record["image"]}
            picture = image_file(setting.images, record["image"])
            found.append(Item(f"{path.stem} {identity}", (record["text"],), picture, truth))
    return found


def scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """The official numbers, for each file."""
    rows = judged(items, outputs)
    metrics: list[Metric] = []
    for split in dict.fromkeys(row["split"] for row in rows):
        metrics += pope_metrics([row for row in rows if row["split"] == split], f"{split} " if split else "")
    metrics.append(share("neither yes nor no", [not is_either(row["said"]) for row in rows], None, "lower"))
    return Scored(metrics, rows)


TASKS = (
    Task(
        name="pope",
        kind="vision-language",
        summary="POPE's official files: --data FILE or folder, --images DIR",
        size=100_000,
        scorer=SCORER,
        make=items,
        ask=asker(16),
        score=scores,
        needs=("data",),
    ),
)
