"""Time and memory of contrastive losses, forward and backward: ``python benchmarks/contrastive.py [--batch 4096]``.

Every figure comes from a fresh process; rounds are interleaved, and ratios to the first row are taken within a round.
"two products" computes what open_clip's ``ClipLoss`` does (one matrix product for each direction) in
plain torch; ``ClipLoss`` itself is measured where it is installed. The losses must agree, or there is no table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

DIM = 512


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
    if find_spec("open_clip"):
        from open_clip.loss import ClipLoss

        peer = ClipLoss()
        found["open_clip ClipLoss"] = lambda v, t, s: peer(F.normalize(v, dim=-1), F.normalize(t, dim=-1), s)
    return found


def measure(name: str, batch: int, chunk: int) -> dict[str, float]:
    """CPU-seconds (a busy machine disturbs them less than wall time) and growth of the peak resident set in MiB."""
    import resource

    import torch

    loss = losses(chunk)[name]
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, DIM, generator=rng).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(50.0, requires_grad=True))
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
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.batch, options.chunk)))
        return
    names = list(losses(options.chunk))
    command = [sys.executable, __file__, f"--batch={options.batch}", f"--chunk={options.chunk}", "--one"]
    rounds = [
        {name: json.loads(subprocess.run([*command, name], capture_output=True, check=True).stdout) for name in names}
        for _ in range(options.rounds)
    ]
    values = [result["loss"] for results in rounds for result in results.values()]
    assert max(values) - min(values) < 1e-4 * max(values), f"losses differ: {values}"
    table = Table(title=f"B = {options.batch}, D = {DIM}, float32, CPU; median of {options.rounds} rounds")
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
