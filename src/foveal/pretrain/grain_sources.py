"""Who describes and who detects, for GRAIN's data: models of Hugging Face, or the truth made as wrong as they are.

`LlavaCaptioner` and `Owlv2Detector` are the two frozen models of the paper. `NoisyTruth` answers in their place for a
sample whose regions are known, and errs at stated rates, so that nothing is ever trained on perfect labels only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from foveal.data.record import Region, Sample
from foveal.pretrain.grain_data import CAPTION, SUBJECT, Detections


@dataclass(frozen=True)
class RegionNoise:
    """How often the truth is spoilt; each error is drawn on its own.

    Raises ValueError for probabilities outside [0, 1] and negative amounts.
    """

    missed: float = 0.2
    """Probability that a region is neither described nor found."""
    mistaken: float = 0.1
    """Probability that a region is described as something else."""
    jitter: float = 0.08
    """Standard deviation of each edge of a box, in widths or heights of the box."""
    invented: float = 0.3
    """Mean number of described boxes with nothing in them (Poisson)."""

    def __post_init__(self) -> None:
        for name in ("missed", "mistaken"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a probability from 0 to 1")
        for name in ("jitter", "invented"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")


@dataclass(frozen=True)
class _Seen:
    box: tuple[float, float, float, float]
    text: str
    score: float


class NoisyTruth:
    """`Captioner` and `Detector` of one sample: its own regions, spoilt once by `RegionNoise` when this is made.

    The score of a box is how well it fits, 0.3 + 0.7 · IoU with the true one; invented boxes score 0.2 to 0.7 at
    random, so the threshold of `select_regions` lets most of them through. A description that is said of two regions
    is found in both.

    Args:
        sample: with regions that have a caption or a label; its last caption is what it answers for a new one.
        noise: the rates of errors.
        vocabulary: descriptions to choose mistaken and invented ones from.
        rng: draws all errors.

    Raises ValueError for an empty vocabulary where the noise needs one.
    """

    def __init__(self, sample: Sample, noise: RegionNoise, vocabulary: Sequence[str], rng: np.random.Generator) -> None:
        if (noise.mistaken or noise.invented) and not vocabulary:
            raise ValueError("vocabulary is empty: give descriptions for mistaken and invented regions")
        self.sample = sample
        height, width = sample.image.shape[:2]
        self.seen: list[_Seen] = []
        for region in sample.regions:
            text = region.caption or region.label
            if text is None or rng.random() < noise.missed:
                continue
            if rng.random() < noise.mistaken:
                text = vocabulary[int(rng.integers(len(vocabulary)))]
            box = _moved(region, noise.jitter, width, height, rng)
            self.seen.append(_Seen(box, text, 0.3 + 0.7 * _iou(box, region.box)))
        for _ in range(int(rng.poisson(noise.invented))):
            (x0, x1), (y0, y1) = (np.sort(rng.uniform(0, side, 2)).tolist() for side in (width, height))
            text = vocabulary[int(rng.integers(len(vocabulary)))]
            self.seen.append(_Seen((x0, y0, x1, y1), text, float(rng.uniform(0.2, 0.7))))

    def answer(self, image: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        """To `SUBJECT` the label of the largest region, to `CAPTION` the last caption, else what the regions show."""
        if question == CAPTION:
            return self.sample.captions[-1] if self.sample.captions else ""
        if question == SUBJECT:
            largest = max(self.sample.regions, key=lambda region: _area(region.box), default=None)
            return (largest.label or "") if largest else ""
        return "\n".join(f"- {text}" for text in dict.fromkeys(thing.text for thing in self.seen))

    def detect(self, image: UInt8[np.ndarray, "h w 3"], texts: Sequence[str]) -> Detections:
        """The spoilt boxes of what is asked for."""
        found = [(thing, label) for label, text in enumerate(texts) for thing in self.seen if thing.text == text]
        boxes = torch.tensor([thing.box for thing, _ in found], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([thing.score for thing, _ in found], dtype=torch.float32)
        return Detections(boxes, scores, torch.tensor([label for _, label in found], dtype=torch.int64))


class Owlv2Detector:
    """`Detector` on ``Owlv2ForObjectDetection`` and its processor; scores above ``threshold`` only."""

    def __init__(self, model: Any, processor: Any, threshold: float = 0.1) -> None:
        self.model, self.processor, self.threshold = model.eval(), processor, threshold

    @torch.no_grad()
    def detect(self, image: UInt8[np.ndarray, "h w 3"], texts: Sequence[str]) -> Detections:
        inputs = self.processor(text=[list(texts)], images=image, return_tensors="pt", truncation=True)
        outputs = self.model(**inputs.to(self.model.device))
        sizes = torch.tensor([image.shape[:2]], device=self.model.device)
        post = self.processor.post_process_grounded_object_detection
        found = post(outputs=outputs, target_sizes=sizes, threshold=self.threshold)[0]
        return Detections(found["boxes"].float().cpu(), found["scores"].float().cpu(), found["labels"].long().cpu())


class LlavaCaptioner:
    """`Captioner` on any image-text-to-text model with a chat template, such as LLaVA-NeXT; greedy decoding."""

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 128) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens

    @torch.no_grad()
    def answer(self, image: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=image, text=prompt, return_tensors="pt").to(self.model.device)
        written = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = written[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(new, skip_special_tokens=True).strip()


def _moved(
    region: Region, jitter: float, width: int, height: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """The box with each edge displaced; it keeps its order and stays in the picture."""
    x0, y0, x1, y1 = region.box
    size = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    moved = np.array(region.box) + jitter * size * rng.standard_normal(4)
    xs, ys = np.sort(moved[0::2]).clip(0, width), np.sort(moved[1::2]).clip(0, height)
    return float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0
