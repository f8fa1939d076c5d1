"""Optimal transport between words and regions, as UNITER aligns them: ``python benchmarks/transport.py [--rounds 5]``.

B pairs of 16 to 32 words and 24 to 48 regions with costs of 1 − cosine. foveal's `ipot` makes all plans of the batch at
once; the POT library (``pip install foveal[peers]``) has no batch with masks and is called for every pair: its exact
solver on numpy, Sinkhorn on numpy, and Sinkhorn in logarithms on torch. Rounds are interleaved; seconds are CPU-seconds
and ratios are taken within a round. Gap: how much a plan costs above the exact one. Error: the largest difference of a
sum over words or regions from what it should be, over what it should be.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import ot
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveal.nn.ot import cosine_cost, ipot

WORDS, REGIONS, DIM = 32, 48, 256
SINKHORN = 0.05
"""Its entropic weight; POT's default number of rounds at most."""
Plans = list[np.ndarray]


def problems(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Costs with the masks of words and of regions."""
    rng = torch.Generator().manual_seed(0)
    masks = [torch.arange(n) < torch.randint(n // 2, n + 1, (batch, 1), generator=rng) for n in (WORDS, REGIONS)]
    words, regions = (torch.randn(batch, n, DIM, generator=rng) for n in (WORDS, REGIONS))
    return cosine_cost(words, regions), masks[0], masks[1]


def batched(cost: Tensor, words: Tensor, regions: Tensor, beta: float = 0.5, iterations: int = 50) -> Plans:
    plans = ipot(cost, words, regions, beta=beta, iterations=iterations)
    return [plan[row][:, column].numpy() for plan, row, column in zip(plans, words, regions, strict=True)]


def one_by_one(solve: Callable[..., np.ndarray], cost: Tensor, words: Tensor, regions: Tensor) -> Plans:
    pairs = zip(cost, words, regions, strict=True)
    return [solve(one[row][:, column].double().numpy()) for one, row, column in pairs]


def exact(cost: np.ndarray) -> np.ndarray:
    return ot.emd(ot.unif(len(cost)), ot.unif(cost.shape[1]), cost)


def sinkhorn(cost: np.ndarray) -> np.ndarray:
    return ot.sinkhorn(ot.unif(len(cost)), ot.unif(cost.shape[1]), cost, SINKHORN)


def log_sinkhorn(cost: np.ndarray) -> np.ndarray:
    rows, columns = (torch.full((n,), 1 / n, dtype=torch.double) for n in cost.shape)
    return ot.sinkhorn(rows, columns, torch.from_numpy(cost), SINKHORN, method="sinkhorn_log").numpy()


SOLVERS: dict[str, Callable[[Tensor, Tensor, Tensor], Plans]] = {
    "POT exact": partial(one_by_one, exact),
    "POT Sinkhorn": partial(one_by_one, sinkhorn),
    "POT Sinkhorn in logarithms": partial(one_by_one, log_sinkhorn),
    "foveal ipot, UNITER's 50 rounds, β 0.5": batched,
    "foveal ipot, 200 rounds, β 0.1": partial(batched, beta=0.1, iterations=200),
}


def seconds_and_plans(name: str, problem: tuple[Tensor, Tensor, Tensor]) -> tuple[float, Plans]:
    start = time.process_time()
    plans = SOLVERS[name](*problem)
    return time.process_time() - start, plans


def quality(plans: Plans, best: Plans, problem: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Mean share by which a plan costs more than the exact one, and the largest error of its sums."""
    gaps, errors = [], []
    for plan, perfect, cost, words, regions in zip(plans, best, *problem, strict=True):
        own = cost[words][:, regions].numpy()
        gaps.append((plan * own).sum() / (perfect * own).sum() - 1)
        errors += [abs(plan.sum(axis) * plan.shape[1 - axis] - 1).max() for axis in (0, 1)]
    return float(np.mean(gaps)), float(max(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    problem = problems(options.batch)
    best = SOLVERS["POT exact"](*problem)
    rounds = [{name: seconds_and_plans(name, problem) for name in SOLVERS} for _ in range(options.rounds)]
    size = f"{options.batch} pairs, up to {WORDS} words × {REGIONS} regions, {torch.get_num_threads()} threads"
    table = Table(title=f"{size}; {options.rounds} rounds")
    for header in ("transport plans", "CPU-s", "ratio to exact", "gap", "error of sums"):
        table.add_column(header, justify="left" if header == "transport plans" else "right")
    for name in SOLVERS:
        gap, error = quality(rounds[-1][name][1], best, problem)
        seconds = statistics.median(found[name][0] for found in rounds)
        ratio = statistics.median(found[name][0] / found["POT exact"][0] for found in rounds)
        table.add_row(name, f"{seconds:.3f}", f"{ratio:.2f}", f"{gap:+.2%}", f"{error:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
