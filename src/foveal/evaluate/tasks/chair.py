"""CHAIR on COCO: captions against what the official annotations say is in the picture.

As in the official code, a picture holds the objects of its instances and those that its reference captions name;
`synonyms.txt` of that code says which words name which object. Captions are split into words by our own rules and
singulars by ours too, without NLTK and pattern, so figures may differ in the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.coco import read_json
from foveal.evaluate.base import Item, Json, Scored, Setting, Task
from foveal.evaluate.tasks.asking import asker, image_file
from foveal.evaluate.tasks.captions import LONGEST, PROMPT, caption_metrics
from foveal.evaluate.tasks.mentions import Lexicon, read_synonyms

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_VEHICLES = ("jet", "train")


def coco_lexicon(synonyms: Path) -> Lexicon:
    """The official words, and the official exceptions: a baby bird is no person, a toilet seat no chair."""
    names = read_synonyms(synonyms)
    qualified = {f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")}
    qualified |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
    qualified |= {"bow tie": "tie", "toilet seat": "toilet"}
    return Lexicon({**{phrase: names[word] for phrase, word in qualified.items() if word in names}, **names})


def items(setting: Setting) -> list[Item]:
    """The pictures of all ``captions_*.json`` in the folder; of more than n those that the seed chooses.

    ValueError: the folder lacks annotations or synonyms, or they have another form.
    """
    folder = Path(str(setting.data))
    lexicon = coco_lexicon(folder / "synonyms.txt")
    captions, instances = (_annotations(folder, kind) for kind in ("captions", "instances"))
    files: dict[Any, str] = {}
    objects: dict[Any, dict[str, None]] = {}
    for content in captions:
        files |= {record["id"]: record["file_name"] for record in content["images"]}
        for entry in content["annotations"]:
            objects.setdefault(entry["image_id"], {}).update(dict.fromkeys(lexicon.mentions(entry["caption"])))
    for content in instances:
        category = {entry["id"]: lexicon.names.get(entry["name"], entry["name"]) for entry in content["categories"]}
        for entry in content["annotations"]:
            objects.setdefault(entry["image_id"], {})[category[entry["category_id"]]] = None
    order = np.random.default_rng(setting.seed).permutation(sorted(files))[: setting.n].tolist()
    return [
        Item(
            str(identity),
            (PROMPT,),
            image_file(setting.images, files[identity]),
            {"id": str(identity), "objects": sorted(objects.get(identity, {})), "synonyms": str(folder)},
        )
        for identity in sorted(order)
    ]


def scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Of the pictures that have a caption. ValueError: none has."""
    said = [(item, output["answer"]) for item, output in zip(items, outputs) if output["answer"] is not None]
    if not said:
        raise ValueError("none of the captions is of a picture in the annotations: are they of the same split?")
    lexicon = coco_lexicon(Path(said[0][0].truth["synonyms"]) / "synonyms.txt")
    metrics, rows = caption_metrics([text for _, text in said], [item.truth["objects"] for item, _ in said], lexicon)
    return Scored(metrics, [{"key": item.key, **row} for (item, _), row in zip(said, rows)])


def _annotations(folder: Path, kind: str) -> list[Any]:
    found = [read_json(path) for path in sorted(folder.glob(f"{kind}_*.json"))]
    wanted = ["annotations", "images"] if kind == "captions" else ["annotations", "categories"]
    if not found or not all(isinstance(content, dict) and content.keys() >= set(wanted) for content in found):
        raise ValueError(f"data={str(folder)!r}: needs COCO's {kind}_*.json with {' and '.join(wanted)}")
    return found


TASKS = (
    Task(
        name="chair",
        kind="vision-language",
        summary="CHAIR on COCO: --data DIR with captions_*.json, instances_*.json and synonyms.txt, --images DIR",
        size=100_000,
        scorer="words of synonyms.txt in the caption against objects of the instances and the reference captions",
        make=items,
        ask=asker(LONGEST, partial=True),
        score=scores,
        needs=("data",),
    ),
)
