"""VQAv2 and data sets in its format, on their official files of questions and annotations.

Goyal et al., CVPR 2017, arXiv 1612.00837. The accuracy of an answer is its agreement with ten people's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.data.coco import read_json
from foveal.evaluate.base import Item, Json, Metric, Scored, Setting, Task, ratio
from foveal.evaluate.tasks.answers import SHORT
from foveal.evaluate.tasks.asking import asker, image_file, vqa_accuracy

_FORM = "question_id, image_id and question in one file, question_id and answers in the other"


def items(setting: Setting) -> list[Item]:
    """The first n questions with the answers of people, by question id.

    ValueError: the folder does not hold one file of each, or they do not fit together.
    """
    folder = Path(str(setting.data))
    asked, answered = (_only(folder, name) for name in ("questions", "annotations"))
    try:
        answers = {entry["question_id"]: entry for entry in answered["annotations"]}
        questions = sorted(asked["questions"], key=lambda entry: entry["question_id"])[: setting.n]
        return [_item(entry, answers[entry["question_id"]], asked, setting.images) for entry in questions]
    except (KeyError, TypeError) as error:
        raise ValueError(f"data={str(folder)!r}: {error} is missing or of another form; needs {_FORM}") from error


def scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Accuracy over all questions and by the type of their answers; chance is to say yes to everything."""
    rows = [
        {
            "key": item.key,
            "question": item.texts[0],
            **item.truth,
            "said": output["answer"],
            "accuracy": vqa_accuracy(output["answer"], item.truth["answers"]),
        }
        for item, output in zip(items, outputs)
    ]
    types = sorted({row["type"] for row in rows if row["type"]})
    metrics: list[Metric] = []
    for kind in ("", *types):
        own = [row for row in rows if kind in ("", row["type"])]
        chance = sum(vqa_accuracy("yes", row["answers"]) for row in own) / len(own)
        metrics.append(ratio(f"accuracy {kind}".strip(), [row["accuracy"] for row in own], chance=chance))
    return Scored(metrics, rows)


def _item(question: Any, annotation: Any, asked: Any, images: Path | None) -> Item:
    identity = str(question["question_id"])
    truth = {
        "id": identity,
        "answers": [str(entry["answer"]) for entry in annotation["answers"]],
        "type": str(annotation.get("answer_type", "")),
    }
    picture = image_file(images, _file_name(int(question["image_id"]), asked.get("data_subtype"), images))
    return Item(identity, (str(question["question"]) + SHORT,), picture, truth)


def _file_name(number: int, subset: str | None, images: Path | None) -> str:
    """COCO's name of 2014, with the subset in it, or else that of 2017."""
    plain = f"{number:012d}.jpg"
    long = f"COCO_{subset}_{plain}"
    return plain if subset is None or (images and (images / plain).is_file()) else long


def _only(folder: Path, name: str) -> Any:
    """The content of the one file with that in its name."""
    found = sorted(folder.glob(f"*{name}*.json"))
    if len(found) != 1:
        raise ValueError(f"data={str(folder)!r} holds {len(found)} files *{name}*.json; it must hold one: {_FORM}")
    return read_json(found[0])


TASKS = (
    Task(
        name="vqa",
        kind="vision-language",
        summary="VQAv2's official files: --data DIR with one *questions*.json and one *annotations*.json, --images DIR",
        size=1_000_000,
        scorer="VQA's accuracy: agreement with ten people after normalisation",
        make=items,
        ask=asker(16),
        score=scores,
        needs=("data",),
    ),
)
