"""Time and memory of contrastive losses, forward and backward: ``python benchmarks/contrastive.py [--batch 256 …]``.

Every figure comes from a fresh process; rounds are interleaved, and ratios to the first row are taken within a round.
"two products" computes what open_clip's ``ClipLoss`` does (one matrix product for each direction) in plain torch;
``ClipLoss`` itself and lightly's ``NTXentLoss`` are measured where they are installed. "the limit" is nothing but the
three matrix products without which there is no loss and no gradient. All that compute CLIP's loss must agree, or there
is no table; lightly's is SimCLR's, which contrasts images with images as well.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

DIM, SCALE = 512, 50.0
OTHERS = ("the limit", "lightly NTXentLoss")
"""Rows that compute something else than CLIP's loss."""


def bare(package: str) -> bool:
    """Whether a package is installed; then its modules can be imported without its ``__init__``, which may need more
    than they do: open_clip's and lightly's want a torchvision that fits."""
    found = find_spec(package)
    if found is not None:
        sys.modules[package] = module = ModuleType(package)
        module.__path__ = list(found.submodule_search_locations or ())
    return found is not None


def products(image, text, scale):
    """One matrix product to score all pairs and two for the gradients of either side."""
    scores = image.detach() @ text.detach().T
    image.grad, text.grad = scores @ text.detach(), scores.T @ image.detach()
    return 0 * scale


def losses(chunk: int) -> dict[str, Callable]:
    """Name -> loss of (image features, text features, scale)."""
    import torch
    import torch.nn.functional as F

    from foveal.pretrain.clip import chunked_clip_loss, clip_loss

    def two_products(image, text, scale):
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        targets = torch.arange(len(image))
        rows, columns = scale * image @ text.T, scale * text @ image.T
        return (F.cross_entropy(rows, targets) + F.cross_entropy(columns, targets)) / 2

    found: dict[str, Callable] = {
        "two products": two_products,
        "foveal clip_loss": lambda *inputs: clip_loss(*inputs).loss,
        f"foveal chunked, {chunk}": lambda *inputs: chunked_clip_loss(*inputs, chunk),
    }
    if bare("open_clip"):
        from open_clip.loss import ClipLoss

        peer = ClipLoss()
        found["open_clip ClipLoss"] = lambda v, t, s: peer(F.normalize(v, dim=-1), F.normalize(t, dim=-1), s)
    if all(
        map(
            bare,
            ("lightly", *(f"lightly.{part}" for part in ("loss", "utils", "models", "models.modules", "models.utils"))),
        )
    ):
        from lightly.loss.ntx_ent_loss import NTXentLoss

        other = NTXentLoss(temperature=1 / SCALE)
        found["lightly NTXentLoss"] = lambda v, t, s: other(v, t)
    return {**found, "the limit": products}


def measure(name: str, batch: int, chunk: int) -> dict[str, float]:
    """CPU-seconds (a busy machine disturbs them less than wall time) and growth of the peak resident set in MiB."""
    import resource

    import torch

    loss = losses(chunk)[name]
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, DIM, generator=rng).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(SCALE, requires_grad=True))
    loss(*(x[:256] if x.ndim else x for x in inputs)).backward()  # warm up: threads, kernels, gradients
    for x in inputs:
        x.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    value = loss(*inputs)
    value.backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "MiB": (peak - before) / 1024, "loss": value.item()}


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.batch[0], options.chunk)))
        return
    names = list(losses(options.chunk))
    for batch in options.batch:
        command = [sys.executable, __file__, f"--batch={batch}", f"--chunk={options.chunk}", "--one"]
        rounds = [
            {
                name: json.loads(subprocess.run([*command, name], capture_output=True, check=True).stdout)
                for name in names
            }
            for _ in range(options.rounds)
        ]
        values = [results[name]["loss"] for results in rounds for name in names if name not in OTHERS]
        assert max(values) - min(values) < 1e-6 * max(values), f"losses differ: {values}"
        table = Table(title=f"B = {batch}, D = {DIM}, float32, CPU; median of {options.rounds} rounds")
        for header in ("loss", "CPU-s", "ratio", "MiB above the features"):
            table.add_column(header, justify="left" if header == "loss" else "right")
        for name in names:
            seconds = statistics.median(results[name]["seconds"] for results in rounds)
            ratio = statistics.median(results[name]["seconds"] / results[names[0]]["seconds"] for results in rounds)
            memory = statistics.median(results[name]["MiB"] for results in rounds)
            table.add_row(name, f"{seconds:.2f}", f"{ratio:.2f}", f"{memory:.0f}")
        Console().print(table)


if __name__ == "__main__":
    main()
