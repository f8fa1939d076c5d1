"""Time and memory of FILIP's late interaction, forward and backward: ``python benchmarks/late_interaction.py``.

B images of 196 patches with B texts of 32 words, 256-d: the symmetric contrastive loss of token-wise similarities.
"dense" makes all B² · N · L token scores by one matrix product and fills, maximises and averages them; "x-clip's form"
does what lucidrains' x-clip does (einsum, a filled copy for one direction, masked means), in plain torch. Every figure
comes from a fresh process; rounds are interleaved, and ratios to "dense" are taken within a round. Losses and
gradients must agree, or there is no table. ``--out`` writes what was measured as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PATCHES, WORDS, DIM, SCALE = 196, 32, 256, 14.0
TOLERANCE = 1e-5
"""Of gradients: largest difference over the largest entry."""


def losses() -> dict[str, Callable]:
    """Name -> loss of (image tokens, text tokens, text mask)."""
    import torch
    import torch.nn.functional as F

    from foveal.pretrain.filip import filip_loss

    def contrast(image_to_text, text_to_image):
        own = torch.arange(len(image_to_text))
        return (F.cross_entropy(SCALE * image_to_text, own) + F.cross_entropy(SCALE * text_to_image.T, own)) / 2

    def dense(image, text, mask):
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        scores = (image.flatten(0, 1) @ text.flatten(0, 1).T).view(*image.shape[:2], *text.shape[:2])
        image_to_text = scores.masked_fill(~mask, -torch.inf).amax(3).mean(1)
        best = scores.amax(1).masked_fill(~mask, 0)
        return contrast(image_to_text, best.sum(2) / mask.sum(1))

    def x_clip(image, text, mask):
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        scores = torch.einsum("xtd,yid->xyti", text, image)
        best = scores.amax(3).masked_fill(~mask[:, None], 0)
        text_to_image = best.sum(2) / mask.sum(1)[:, None]
        lowest = -torch.finfo(scores.dtype).max
        image_to_text = scores.masked_fill(~mask[:, None, :, None], lowest).amax(2).mean(2)
        return contrast(image_to_text.T, text_to_image.T)

    return {
        "dense": dense,
        "x-clip's form": x_clip,
        "foveal filip_loss": lambda image, text, mask: filip_loss(image, text, SCALE, text_mask=mask).loss,
    }


def measure(name: str, batch: int, gradients: str) -> dict[str, float]:
    """CPU-seconds (a busy machine disturbs them less than wall time) and growth of the peak resident set in MiB."""
    import resource

    import numpy as np
    import torch

    loss = losses()[name]
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, n, DIM, generator=rng).requires_grad_() for n in (PATCHES, WORDS)]
    mask = torch.arange(WORDS) < torch.randint(8, WORDS + 1, (batch, 1), generator=rng)
    loss(*(x[:2] for x in inputs), mask[:2]).backward()  # warm up: threads, kernels, gradients
    for x in inputs:
        x.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    value = loss(*inputs, mask)
    value.backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if gradients:
        np.savez(gradients, *(x.grad.numpy() for x in inputs if x.grad is not None))
    return {"seconds": seconds, "MiB": (peak - before) / 1024, "loss": value.item()}


def child(name: str, batch: int, gradients: str = "") -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, f"--batch={batch}", "--one", name, "--gradients", gradients]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def largest_difference(names: list[str], batch: int) -> float:
    """Between the gradients of the first loss and those of any other, over the largest entry."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.npz") for number in range(len(names))]
        values = [child(name, batch, file)["loss"] for name, file in zip(names, files, strict=True)]
        assert max(values) - min(values) < TOLERANCE * max(values), f"losses differ: {values}"
        loaded = [list(np.load(file, allow_pickle=False).values()) for file in files]
    worst = max(
        float(abs(mine - first).max() / abs(first).max())
        for other in loaded[1:]
        for first, mine in zip(loaded[0], other, strict=True)
    )
    assert worst < TOLERANCE, f"gradients differ by {worst}"
    return worst


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.batch, options.gradients)))
        return
    names = list(losses())
    worst = largest_difference(names, options.batch)
    rounds = [{name: child(name, options.batch) for name in names} for _ in range(options.rounds)]
    figures = {
        name: {
            "cpu_seconds": statistics.median(found[name]["seconds"] for found in rounds),
            "time_ratio": statistics.median(found[name]["seconds"] / found[names[0]]["seconds"] for found in rounds),
            "MiB": statistics.median(found[name]["MiB"] for found in rounds),
        }
        for name in names
    }
    title = f"B = {options.batch}, {WORDS} words × {PATCHES} patches × {DIM}, float32, CPU; {options.rounds} rounds"
    table = Table(title=title)
    for header in ("late interaction", "CPU-s", "ratio", "MiB above the tokens", "share"):
        table.add_column(header, justify="left" if header == "late interaction" else "right")
    for name, found in figures.items():
        share = found["MiB"] / figures[names[0]]["MiB"]
        cells = f"{found['cpu_seconds']:.2f}", f"{found['time_ratio']:.2f}", f"{found['MiB']:.0f}", f"{share:.3f}"
        table.add_row(name, *cells)
    Console().print(table)
    Console().print(f"largest difference of gradients: {worst:.1e} of the largest entry")
    if options.out:
        report = {"batch": options.batch, "gradient_difference": worst, "figures": figures, "rounds": rounds}
        aside = options.out.with_suffix(".tmp")
        aside.write_text(json.dumps(report, indent=1), encoding="utf-8")
        aside.replace(options.out)


if __name__ == "__main__":
    main()
