"""One of the two gloo processes that conftest.py starts; leaves its results in ``out/rank<r>.json``."""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist

from foveal.pretrain.base import gather_features
from foveal.pretrain.clip import CLIPObjective, chunked_clip_loss, clip_loss
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
    }
    (pathlib.Path(out) / f"rank{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
