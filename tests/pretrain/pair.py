"""One of the two gloo processes that conftest.py starts; leaves its results in ``out/rank<r>.json``."""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported once there is a group, it would keep it in its defaults
import torch.nn.functional as F

from foveal.pretrain.base import gather_features
from foveal.pretrain.clip import CLIPObjective, chunked_clip_loss, clip_loss
from foveal.pretrain.nevlp import NoiseEstimator
from foveal.pretrain.uniter import UNITERObjective
from pretrain import cloc_inputs, dreamlip_inputs, filip_inputs, nevlp_inputs, uniter_inputs
from pretrain.contract import CASES, pairs
from pretrain.measure import run

RANK = int(os.environ["RANK"])


def mine(inputs):
    """This process's half of the samples."""
    return tuple(x.chunk(2)[RANK] for x in inputs)


def error(call):
    try:
        call()
    except ValueError as caught:
        return str(caught)
    return None


def gathering():
    """d(sum of this rank's weights · gathered)/dx, for float32 and bfloat16; the weights of rank r are r + 1."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.arange(6.0).view(3, 2) + 10 * RANK).to(dtype).requires_grad_()
        everything = gather_features(x)
        (everything * (RANK + 1) * torch.arange(1, 13).view(6, 2)).sum().backward()
        results[str(dtype)] = {"value": everything.tolist(), "grad": x.grad.tolist()}
    return results


def by_hand(objective, inputs):
    """What the docstrings of gather_features and clip_loss tell a user to write."""
    everything = [gather_features(x) for x in inputs]
    both = {"all_image_features": everything[0], "all_text_features": everything[1]}
    return clip_loss(*inputs, objective.logit_scale(), **both, rank=RANK).loss


def chunked(objective, inputs):
    return chunked_clip_loss(*map(gather_features, inputs), objective.logit_scale(), 4)


def poisoned():
    """Only the other process has the bad row."""
    image, text = mine(pairs(6, 0))
    if RANK == 1:
        text[0, 0] = float("nan")
    return CLIPObjective()(image, text)


def filip():
    """Texts that are one word shorter on the second process; a sample of padding, and a bad token, on it alone."""
    image, text, text_mask, image_mask = mine(filip_inputs.tokens(6, 0))
    short = (image, text[:, :-1], text_mask[:, :-1], image_mask) if RANK == 1 else (image, text, text_mask, image_mask)
    hidden, spoilt, patches = image_mask.clone(), text.clone(), image.clone()
    if RANK == 1:
        hidden[-1] = False
        spoilt[-1, 0, 0] = patches[-1, 0, 0] = float("nan")
    return {
        "shorter": run(filip_inputs.objective(), short),
        "all_padding": error(lambda: filip_inputs.objective()(image, text, text_mask, hidden)),
        "poisoned": error(lambda: filip_inputs.objective()(image, spoilt, text_mask, image_mask)),
        "poisoned_image": error(lambda: filip_inputs.objective(keep_ratio=0.5)(patches, text, text_mask, image_mask)),
    }


def dreamlip():
    """A bad patch on the second process alone."""
    image, patch, text = mine(dreamlip_inputs.features(6, 0))
    spoilt = patch.clone()
    spoilt[0, 0, 0] = float("nan") if RANK == 1 else 0.0
    return {
        "batch": run(dreamlip_inputs.batch_negatives(), (image, patch, text)),
        "poisoned": error(lambda: dreamlip_inputs.objective()(image, spoilt, text)),
    }


def nevlp():
    """Losses of every second pair, and one more on the first process; padding that differs between the processes."""
    rng = torch.Generator().manual_seed(0)
    low, high = 0.5 + 0.2 * torch.randn(60, generator=rng), 3 + 0.5 * torch.randn(40, generator=rng)
    losses, estimator = torch.cat([low, high]), NoiseEstimator(110)
    rows = torch.tensor([*range(RANK, 100, 2), *([1] if RANK == 0 else [])])
    estimator.record(rows, losses[rows])
    estimator.refresh()
    features, noise, ids, mask, concepts, concept_mask = given = mine(nevlp_inputs.inputs(6, 0))
    if RANK == 1:
        ids, mask = F.pad(ids, (0, 1), value=5), F.pad(mask, (0, 1))
        concepts, concept_mask = F.pad(concepts, (0, 2), value=5), F.pad(concept_mask, (0, 2))
    return {
        "noise": estimator(torch.arange(110)).tolist(),
        "plain": run(nevlp_inputs.Objective(), given),
        "padded": run(nevlp_inputs.Objective(), (features, noise, ids, mask, concepts, concept_mask)),
    }


def uniter():
    """A bad region on the second process alone."""
    batch = dict(zip(uniter_inputs.NAMES, mine(uniter_inputs.inputs(6, 0)), strict=True))
    if RANK == 1:
        batch["region_features"][0, 2, 0] = float("nan")
    objective = UNITERObjective(uniter_inputs.model())
    return {task: error(lambda task=task: objective(task, batch)) for task in ("mlm", "mrfr", "mrc", "mrc_kl", "itm")}


def cloc():
    """Boxes in pixels on the second process alone."""
    *inputs, boxes, valid = mine(cloc_inputs.batch(6, 0))
    boxes = 8 * boxes if RANK == 1 else boxes
    return {"pixels": error(lambda: cloc_inputs.objective()(*inputs, boxes, valid))}


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = {
        "contract": {case.name: run(case.build(), mine(case.inputs(6, 0))) for case in CASES},
        "gather": gathering(),
        "by_hand": run(CLIPObjective(), mine(pairs(6, 0)), by_hand),
        "chunked": run(CLIPObjective(), mine(pairs(6, 0)), chunked),
        "uneven": error(lambda: CLIPObjective()(*(x[: 3 - RANK] for x in mine(pairs(6, 0))))),
        "poisoned": error(poisoned),
        "filip": filip(),
        "dreamlip": dreamlip(),
        "nevlp": nevlp(),
        "uniter": uniter(),
        "cloc": cloc(),
    }
    (pathlib.Path(out) / f"rank{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
