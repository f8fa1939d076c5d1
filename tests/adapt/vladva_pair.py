"""VladVA's losses and gradients on a tiny LLaVA: alone, or as one of two gloo processes (see test_vladva.py)."""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported once there is a group, it would keep it in its defaults
from decode import tiny

from foveal.adapt.vladva import VladvaModel

PROMPTS = {"image_prompt_ids": [7, 8, 9], "text_prompt_ids": [10, 11]}


def model(kind="llava", **options):
    """A new one at each call, with corrections that are not zero."""
    made = VladvaModel(
        tiny.model.__wrapped__(kind), rank=2, generator=torch.Generator().manual_seed(1), **PROMPTS | options
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1, generator=generator)
    return made


def batch(rows=4, seed=0):
    """Pictures with short captions and with long ones of different lengths, of which the first is empty."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.arange(rows) * 2
    places = torch.arange(8)
    return {
        "pixel_values": torch.randn(rows, 3, 32, 32, generator=rng),
        "short_ids": torch.randint(3, 50, (rows, 5), generator=rng),
        "short_mask": places[:5] < (2 + torch.arange(rows) % 3)[:, None],
        "long_ids": torch.randint(3, 50, (rows, 8), generator=rng),
        "long_mask": places < lengths[:, None],
    }


def measure(inputs):
    made = model()
    out = made(**inputs)
    out.loss.backward()
    gradients = {name: p.grad.tolist() for name, p in made.named_parameters() if p.requires_grad}
    losses = {name: getattr(out, name).item() for name in ("loss", "contrastive", "autoregressive")}
    return {"losses": losses, "gradients": gradients}


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    result = measure({name: value.chunk(2)[rank] for name, value in batch().items()})
    (pathlib.Path(out) / f"rank{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
