"""UNITER: words and image regions read by one BERT, which learns to fill in either while it sees all of the other.

Each step trains one task, drawn with `TASK_WEIGHTS`; x̂ are predictions, D the detector's distribution over classes:

    mlm      CE of the masked words                                      all regions visible
    mrfr     ‖r̂ − r‖²    feature of the masked regions                   all words visible (conditional masking)
    mrc      CE to arg-max of D without the background (class 0)                 "
    mrc_kl   KL(D ‖ D̂)                                                          "
    itm      CE(match or not) + 0.1 · wra       nothing masked, half of the images replaced by another one
             wra = (Σ_matched d − Σ_unmatched d) / B,   d = Σ C∘T,   C = 1 − cos(word, region),   T from `ipot`

Yen-Chun Chen, Linjie Li, Licheng Yu, Ahmed El Kholy, Faisal Ahmed, Zhe Gan, Yu Cheng, Jingjing Liu: UNITER: UNiversal
Image-TExt Representation Learning. ECCV 2020, arXiv 1909.11740.

Departures: as in the released code, itm is a two-way cross-entropy (the paper writes a sigmoid), and "mean" averages
mrfr and mrc_kl over dimensions or classes too ("sum" is the paper's formula). Padding is hidden, not gathered away.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.ot import ipot as ipot
from foveal.pretrain.base import at_least_float32, finite_on_all, mean_over_processes
from foveal.pretrain.base_fusion import IGNORED as IGNORED
from foveal.pretrain.base_fusion import itm_loss as itm_loss
from foveal.pretrain.uniter_model import INPUTS, Batch
from foveal.pretrain.uniter_model import UNITER as UNITER
from foveal.pretrain.uniter_model import UNITERConfig as UNITERConfig
from foveal.pretrain.uniter_model import UNITERForPretraining as UNITERForPretraining
from foveal.pretrain.uniter_model import mask_regions as mask_regions
from foveal.pretrain.uniter_model import wra_distance as wra_distance

TASK_WEIGHTS = {"itm": 2, "mlm": 2, "mrfr": 1, "mrc_kl": 1}
NEEDED = {
    "mlm": ("labels",),
    "mrfr": ("masked_regions",),
    "mrc": ("masked_regions", "detector_probs"),
    "mrc_kl": ("masked_regions", "detector_probs"),
    "itm": ("targets",),
}
REDUCTIONS = ("mean", "sum")

# Inputs ---------------------------------------------------------------------------------------------------------------


def region_position_features(
    boxes: Float[Tensor, "b n 4"], image_sizes: Float[Tensor, "b 2"]
) -> Float[Tensor, "b n 7"]:
    """[x1/W, y1/H, x2/W, y2/H, w/W, h/H, wh/WH] of boxes x1, y1, x2, y2 in pixels; ``image_sizes`` are (W, H).

    Raises ValueError for shapes that do not fit, boxes whose corners are swapped, images without area, and NaN.
    """
    if boxes.ndim != 3 or boxes.shape[2] != 4 or image_sizes.shape != (len(boxes), 2):
        shapes = f"boxes {tuple(boxes.shape)}, image_sizes {tuple(image_sizes.shape)}"
        raise ValueError(f"{shapes}: must be (B, N, 4) and (B, 2)")
    if not (bool(boxes.isfinite().all()) and bool(image_sizes.isfinite().all()) and bool((image_sizes > 0).all())):
        raise ValueError("boxes and image_sizes must be finite, and image_sizes positive")
    swapped = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if bool(swapped.any()):
        first = boxes[swapped][0].tolist()
        raise ValueError(f"boxes holds {first}: must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, not x, y, w, h")
    corners = boxes / image_sizes.repeat(1, 2)[:, None]
    sides = corners[..., 2:] - corners[..., :2]
    return torch.cat([corners, sides, sides.prod(-1, keepdim=True)], -1)


def mask_tokens(
    input_ids: Int[Tensor, "b l"],
    maskable: Bool[Tensor, "b l"],
    mask_id: int,
    *,
    uniform: Float[Tensor, "b l"],
    random_ids: Int[Tensor, "b l"],
    mask_prob: float = 0.15,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"]]:
    """BERT's masking: 80 % of the drawn words become ``mask_id``, 10 % a random word, 10 % stay. Inputs stay as given.

    Args:
        maskable: neither special tokens nor padding.
        uniform: numbers in [0, 1); a word is drawn if its number is below ``mask_prob``, and its share of
            ``mask_prob`` decides between the three. Where none was drawn, the first maskable word is masked.
        random_ids: the words to replace by.

    Returns the masked words, and labels: the original word where one was drawn, −100 elsewhere.
    Raises ValueError for shapes that do not fit, a text without a maskable word, and a probability outside [0, 1].
    """
    if input_ids.ndim != 2 or not input_ids.shape == maskable.shape == uniform.shape == random_ids.shape:
        given = {"input_ids": input_ids, "maskable": maskable, "uniform": uniform, "random_ids": random_ids}
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise ValueError(f"{shapes}: must be (B, L) alike")
    maskable = maskable.bool()
    if not bool(maskable.any(1).all()):
        raise ValueError("maskable has a row without a word: leave empty texts out of mlm")
    drawn = maskable & (uniform < _probability(mask_prob))
    forced = maskable & (maskable.cumsum(1) == 1) & ~drawn.any(1, keepdim=True)
    share = uniform / mask_prob if mask_prob else torch.zeros_like(uniform)
    changed = torch.where(share < 0.9, random_ids, input_ids).masked_fill(share < 0.8, mask_id)
    masked = torch.where(drawn, changed, input_ids).masked_fill(forced, mask_id)
    return masked, input_ids.masked_fill(~(drawn | forced), IGNORED)


def sample_region_mask(
    region_mask: Bool[Tensor, "b n"], *, uniform: Float[Tensor, "b n"], mask_prob: float = 0.15
) -> Bool[Tensor, "b n"]:
    """Which regions to mask: valid ones with ``uniform`` below ``mask_prob``, else the valid one with the smallest.

    Raises ValueError for shapes that do not fit, an image without a valid region, a probability outside [0, 1].
    """
    if region_mask.ndim != 2 or region_mask.shape != uniform.shape:
        shapes = f"region_mask {tuple(region_mask.shape)}, uniform {tuple(uniform.shape)}"
        raise ValueError(f"{shapes}: must be (B, N) alike")
    region_mask = region_mask.bool()
    if not bool(region_mask.any(1).all()):
        raise ValueError("region_mask has a row without a valid region: give such an image its whole as a region")
    drawn = region_mask & (uniform < _probability(mask_prob))
    smallest = uniform.masked_fill(~region_mask, torch.inf).argmin(1)
    forced = F.one_hot(smallest, region_mask.shape[1]).bool() & ~drawn.any(1, keepdim=True)
    return drawn | forced


def replace_images(
    batch: Batch, *, generator: torch.Generator, prob: float = 0.5, image_ids: Int[Tensor, " b"] | None = None
) -> dict[str, Tensor]:
    """The batch of an itm step: about half of the texts get the regions of another image; ``targets``: 1 = own image.

    Args:
        image_ids: texts with the same number describe the same image, and are never each other's negatives; default:
            all images differ. A text for which the batch holds no other image keeps its own.
    """
    rows = len(batch["input_ids"])
    ids = torch.arange(rows) if image_ids is None else image_ids.to("cpu")
    if ids.shape != (rows,):
        raise ValueError(f"image_ids {tuple(ids.shape)} must be ({rows},), one for each text")
    others = (ids[:, None] != ids[None]).double()
    possible = others.any(1)
    chance = torch.rand(rows, generator=generator, device=generator.device).to("cpu")
    replaced = possible & (chance < _probability(prob, "prob"))
    others = others + ~possible[:, None]  # a row of zeros cannot be drawn from
    partner = torch.multinomial(others.to(generator.device), 1, generator=generator).to("cpu")[:, 0]
    device = batch["input_ids"].device
    source = torch.where(replaced, partner, torch.arange(rows)).to(device)
    regions = {name: batch[name][source] for name in ("region_features", "region_positions", "region_mask")}
    texts = {name: batch[name] for name in ("input_ids", "text_mask")}
    return {**texts, **regions, "targets": (~replaced).long().to(device)}


# Losses ---------------------------------------------------------------------------------------------------------------


def mlm_loss(logits: Float[Tensor, "*s v"], labels: Int[Tensor, "*s"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the words with a label. ValueError if all labels are −100."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: must be (B, L, V) and (B, L)")
    if not bool((labels != IGNORED).any()):
        raise ValueError(f"labels are all {IGNORED}: mask at least one word, see mask_tokens")
    return F.cross_entropy(at_least_float32(logits).flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def mrfr_loss(
    prediction: Float[Tensor, "s dv"], target: Float[Tensor, "s dv"], *, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Squared error: mean over regions and dimensions, or ("sum") summed over dimensions first."""
    _check_rows(prediction, target, "prediction", "target")
    error = (at_least_float32(prediction) - at_least_float32(target)).square()
    return _reduce(error, reduction)


def mrc_loss(logits: Float[Tensor, "s c"], detector_probs: Float[Tensor, "s c"]) -> Float[Tensor, ""]:
    """Mean cross-entropy to the detector's best class; the background, class 0, is never the target."""
    _check_rows(logits, detector_probs, "logits", "detector_probs")
    return F.cross_entropy(at_least_float32(logits), detector_probs[:, 1:].argmax(1) + 1)


def mrc_kl_loss(
    logits: Float[Tensor, "s c"], detector_probs: Float[Tensor, "s c"], *, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """KL(detector ‖ prediction): mean over regions and classes, or ("sum") summed over classes first."""
    _check_rows(logits, detector_probs, "logits", "detector_probs")
    probabilities = at_least_float32(detector_probs)
    return _reduce(F.kl_div(at_least_float32(logits).log_softmax(-1), probabilities, reduction="none"), reduction)


def wra_loss(distance: Float[Tensor, " b"], is_match: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
    """(Σ of matched − Σ of unmatched distances) / B: words move towards their own regions, away from others'."""
    if distance.ndim != 1 or distance.shape != is_match.shape or len(distance) == 0:
        raise ValueError(f"distance {tuple(distance.shape)}, is_match {tuple(is_match.shape)}: must be (B,) alike")
    return torch.where(is_match.bool(), distance, -distance).mean()


# Objective ------------------------------------------------------------------------------------------------------------


@dataclass
class UNITEROutput:
    """The loss of one step, and its parts; what the task has not is None. ``mrm``: mrfr, mrc or mrc_kl."""

    loss: Float[Tensor, ""]
    mlm: Float[Tensor, ""] | None = None
    mrm: Float[Tensor, ""] | None = None
    itm: Float[Tensor, ""] | None = None
    wra: Float[Tensor, ""] | None = None
    distances: Float[Tensor, " b"] | None = None


class UNITERObjective(nn.Module):
    """One step of one task; in a distributed run all processes must take the same one.

    Means over masked words and regions are over those of all processes, after DDP's mean of the gradients.

    Args:
        model: see `UNITERForPretraining` for what a batch holds.
        wra_weight: weight of word–region alignment in the itm step.
        mrm_reduction: "mean" as in the released code, "sum" as in the paper; see `mrfr_loss`.
    """

    def __init__(self, model: UNITERForPretraining, *, wra_weight: float = 0.1, mrm_reduction: str = "mean") -> None:
        super().__init__()
        if mrm_reduction not in REDUCTIONS:
            raise ValueError(f"mrm_reduction={mrm_reduction!r} is unknown: choose one of {', '.join(REDUCTIONS)}")
        self.model, self.wra_weight, self.mrm_reduction = model, wra_weight, mrm_reduction

    def forward(self, task: str, batch: Batch) -> UNITEROutput:
        """``task``: mlm, mrfr, mrc, mrc_kl or itm. What else the batch holds is not looked at.

        Raises ValueError for an unknown task, a batch without what the task needs, shapes that do not fit, and, on all
        processes together, non-finite features.
        """
        if task not in NEEDED:
            raise ValueError(f"task={task!r} is unknown: choose one of {', '.join(NEEDED)}")
        needed = {name: batch.get(name) for name in (*INPUTS, *NEEDED[task])}
        if missing := [name for name, value in needed.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"batch has no {missing[0]!r} tensor, which task={task!r} needs")
        out = {"mlm": self._mlm, "itm": self._itm}[task](batch) if task in ("mlm", "itm") else self._mrm(task, batch)
        finite_on_all(out.loss, **_floats(task, batch))
        return out

    def _mlm(self, batch: Batch) -> UNITEROutput:
        labels = batch["labels"]
        if labels.shape != batch["input_ids"].shape:
            shapes = f"labels {tuple(labels.shape)}, input_ids {tuple(batch['input_ids'].shape)}"
            raise ValueError(f"{shapes}: must be (B, L) alike")
        wanted = labels != IGNORED
        loss = mlm_loss(self.model.word_scores(batch, wanted), labels[wanted]) * _share(wanted)
        return UNITEROutput(loss, mlm=loss)

    def _mrm(self, task: str, batch: Batch) -> UNITEROutput:
        masked = batch["masked_regions"].bool()
        if task == "mrfr":
            prediction = self.model.forward_mrfr(batch)
            loss = mrfr_loss(prediction, batch["region_features"][masked], reduction=self.mrm_reduction)
        else:
            logits, probabilities = self.model.forward_mrc(batch), batch["detector_probs"]
            if probabilities.shape != (*masked.shape, logits.shape[1]):
                wanted = f"(B, N, classes) = {(*masked.shape, logits.shape[1])}"
                raise ValueError(f"detector_probs {tuple(probabilities.shape)} must be {wanted}")
            probabilities = probabilities[masked]
            if task == "mrc":
                loss = mrc_loss(logits, probabilities)
            else:
                loss = mrc_kl_loss(logits, probabilities, reduction=self.mrm_reduction)
        loss = loss * _share(masked)
        return UNITEROutput(loss, mrm=loss)

    def _itm(self, batch: Batch) -> UNITEROutput:
        hidden, pooled = self.model.encode(batch)  # below, `wra_distance` would refuse NaN on this process alone
        finite_on_all(hidden.mean(), **_floats("itm", batch), **{"hidden states": hidden})
        logits, distances = self.model.match(batch, hidden, pooled)
        matching = itm_loss(logits, batch["targets"])
        alignment = wra_loss(distances, batch["targets"] == 1)
        return UNITEROutput(matching + self.wra_weight * alignment, None, None, matching, alignment, distances)


def _floats(task: str, batch: Batch) -> dict[str, Tensor]:
    """What may hold NaN of what the task needs."""
    return {name: batch[name] for name in (*INPUTS, *NEEDED[task]) if batch[name].is_floating_point()}


def _share(wanted: Bool[Tensor, "b l"]) -> Float[Tensor, ""]:
    """How many places this process has, over the mean of all processes."""
    count = wanted.sum()
    return count / mean_over_processes(count)


def _reduce(values: Float[Tensor, "s k"], reduction: str) -> Float[Tensor, ""]:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown: choose one of {', '.join(REDUCTIONS)}")
    return values.mean() if reduction == "mean" else values.sum(-1).mean()


def _check_rows(one: Tensor, other: Tensor, name: str, other_name: str) -> None:
    if one.ndim != 2 or one.shape != other.shape or 0 in one.shape:
        shapes = f"{name} {tuple(one.shape)}, {other_name} {tuple(other.shape)}"
        raise ValueError(f"{shapes}: must be alike, one row for each masked region and at least one")


def _probability(value: float, name: str = "mask_prob") -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must be in [0, 1]")
    return value
