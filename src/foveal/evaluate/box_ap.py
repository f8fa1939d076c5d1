"""Average precision of boxes as COCO counts it, by pycocotools, for groups of classes such as base and novel ones.

The detections of each class are ranked over all images; a detection is right when it overlaps a box of that class,
not taken by a better one, by the threshold. AP is the mean precision over 101 recalls, over the classes of a group that
have boxes, and over the thresholds 0.5 to 0.95; AP50 is that at 0.5 alone. Lin et al., Microsoft COCO, ECCV 2014,
arXiv 1405.0312.
"""

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MOST = 300
"""Detections of one class in one image that count."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: x0, y0, x1, y1 in one unit for truth and detections; the class of each; scores if found."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"] | None = None


@dataclass(frozen=True)
class BoxAP:
    """In percent."""

    ap: float
    ap50: float


def box_ap(truth: Sequence[Boxes], found: Sequence[Boxes], groups: Mapping[str, Collection[int]]) -> dict[str, BoxAP]:
    """AP and AP50 of each group.

    Args:
        truth, found: for each image; what was found needs scores.
        groups: name -> classes, such as ``{"base": [1, 2], "novel": [3]}``. A class without boxes is left out.

    Raises ValueError for shapes that do not fit, non-finite numbers, and a group of which no class has a box.
    """
    if len(truth) != len(found) or not truth:
        raise ValueError(f"truth has {len(truth)} images, found {len(found)}: give both for the same, at least one")
    for boxes, scored in ((truth, False), (found, True)):
        for one in boxes:
            _check(one, scored)
    present = {int(label) for one in truth for label in one.labels}
    for name, classes in groups.items():
        if not present & set(classes):
            raise ValueError(f"groups[{name!r}]={sorted(classes)}: no image has a box of these classes")
    return {name: _group(truth, found, sorted(present & set(classes))) for name, classes in groups.items()}


def _group(truth: Sequence[Boxes], found: Sequence[Boxes], classes: list[int]) -> BoxAP:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        reference, candidates = COCO(), COCO()
        for dataset, boxes in ((reference, truth), (candidates, found)):
            dataset.dataset = {
                "images": [{"id": image} for image in range(len(truth))],
                "categories": [{"id": label} for label in classes],
                "annotations": _annotations(boxes, set(classes)),
            }
            dataset.createIndex()
        evaluation = COCOeval(reference, candidates, "bbox")
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # thresholds, recalls, classes
    return BoxAP(100 * float(precision.mean()), 100 * float(precision[0].mean()))


def _annotations(images: Sequence[Boxes], classes: set[int]) -> list[dict[str, object]]:
    annotations: list[dict[str, object]] = []
    for image, one in enumerate(images):
        for row, label in enumerate(one.labels.tolist()):
            if label not in classes:
                continue
            x0, y0, x1, y1 = (float(value) for value in one.boxes[row])
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            if one.scores is not None:
                entry["score"] = float(one.scores[row])
            annotations.append(entry)
    return annotations


def _check(one: Boxes, scored: bool) -> None:
    name = "found" if scored else "truth"
    if one.boxes.ndim != 2 or one.boxes.shape[1] != 4 or one.labels.shape != one.boxes.shape[:1]:
        raise ValueError(f"{name} has boxes {one.boxes.shape}, labels {one.labels.shape}: must be (N, 4) and (N,)")
    if not np.isfinite(one.boxes).all():
        raise ValueError(f"{name} has boxes that hold NaN or infinity")
    if scored and (one.scores is None or one.scores.shape != one.labels.shape or not np.isfinite(one.scores).all()):
        raise ValueError("found has boxes without a finite score each")
