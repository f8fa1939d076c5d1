"""From a model and examples to a schedule and its curve: search on one half of the examples, report on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveal.cli._compress_examples import Asked, Example, Report, shuffled
from foveal.cli._compress_measure import Cost, Judge, fitting_metric, typical_words
from foveal.compress.anatomy import find
from foveal.compress.gsearch import GSearchResult, LayerwiseKeep, g_search, search_p_sigmoid
from foveal.compress.matched import matched_reducers
from foveal.evaluate.base import Metric
from foveal.evaluate.models.vision_language import VisionLanguage

START = 2
"""Decoder layers that keep every image token: the ranking of layer 0 is unlike all others, see `gsearch`."""
LEVELS = 32
NAMES = {"psigmoid": "P-Sigmoid", "gsearch": "G-Search"}
UNMODIFIED = "as it is"


@dataclass(frozen=True)
class Plan:
    """What is asked for; ValueError where it makes no sense."""

    method: str
    budget: float | None
    """None: what G-Search finds."""
    tolerance: float
    """Hundredths that G-Search may lose."""
    metric: str
    points: int
    tries: int
    seed: int

    def __post_init__(self) -> None:
        if self.method == "gsearch" and self.budget is not None:
            raise ValueError(f"budget={self.budget:g}: gsearch finds its own budget; leave it out, or take psigmoid")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f"budget={self.budget:g}: the share of image tokens to keep must lie in (0, 1]")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance={self.tolerance}: what may be lost must be a number of 0 or more points")
        if min(self.points, self.tries) < 1 or self.seed < 0:
            raise ValueError(f"points={self.points}, tries={self.tries}, seed={self.seed}: must be at least 1, 1 and 0")


@dataclass(frozen=True)
class Point:
    """One method at one budget on the examples that nothing was searched on."""

    method: str
    budget: float
    cost: Cost | None
    """None for the unmodified model."""
    metric: Metric

    def as_json(self) -> dict[str, Any]:
        cost = {"kept": 1.0, "flops": 1.0, "kv": 1.0} if self.cost is None else self.cost.as_json()
        return {"method": self.method, "budget": self.budget, **cost, self.metric.name: self.metric.as_json()}


@dataclass(frozen=True)
class Found:
    """The schedule, and everything that was measured beside it."""

    rates: list[float]
    budget: float
    evaluations: int
    """Of strategies, for this schedule."""
    metric: str
    words: float
    """Of the middle one of the reference answers."""
    searched: int
    reported: int
    points: list[Point]
    """The unmodified model first, then by method and budget."""
    refused: dict[str, str]
    """Methods that cannot work on the model or at the schedule's budget, with the reason."""


def check_depth(model: Any, plan: Plan) -> int:
    """The number of decoder layers. ValueError for a model or a budget that no schedule can serve."""
    depth = len(find(model).layers)
    if depth <= START:
        raise ValueError(
            f"model has {depth} decoder layers; a schedule keeps the first {START} whole, give a deeper one"
        )
    if plan.budget is not None and plan.budget <= START / depth:
        raise ValueError(
            f"budget={plan.budget:g}: layers 0 and 1 of {depth} keep every image token, so a budget must be above "
            f"{START / depth:.4g}"
        )
    return depth


def run(adapter: VisionLanguage, asked: Asked, plan: Plan, report: Report) -> Found:
    """Search and measure.

    Raises:
        ValueError: the model or the budget will not do, or there are fewer than two sound examples.
    """
    depth = check_depth(adapter.model, plan)
    examples = asked.examples(report)
    if len(examples) < 2:
        raise ValueError(f"{len(examples)} example: give two at least, one half is searched on, the other reported on")
    order = shuffled(len(examples), plan.seed)
    searched, reported = (
        [examples[i] for i in sorted(part)] for part in (order[: len(order) // 2], order[len(order) // 2 :])
    )
    metric = fitting_metric(examples) if plan.metric == "auto" else plan.metric
    judge = Judge(adapter, asked, examples, metric, probe=searched)
    report("measuring the model as it is", 0, 1)
    points = [Point(UNMODIFIED, 1.0, None, judge.as_metric(judge.scores(reported)))]
    search = Search(judge, searched, depth, plan, report)
    chosen = search.chosen()
    budget = sum(chosen.rates) / depth if plan.budget is None else plan.budget
    budgets = around(budget, START / depth, plan.points)
    strategies = {budget: chosen.rates}
    if plan.method == "psigmoid":
        strategies = {b: chosen.rates if b == budget else search.p_sigmoid(b).rates for b in budgets}
    for done, (own, rates) in enumerate(strategies.items()):
        report("measuring the schedules", done, len(strategies))
        points.append(Point(NAMES[plan.method], own, *judge.measured(reported, LayerwiseKeep(rates))))
    compared, refused = others(judge, reported, budgets, budget, plan.seed, report)
    points, counts = points + compared, (len(searched), len(reported))
    return Found(chosen.rates, budget, chosen.evaluations, metric, typical_words(examples), *counts, points, refused)


def around(budget: float, least: float, points: int) -> list[float]:
    """So many budgets, rising: the one that is asked for in the middle, the others between ``least`` and its double."""
    if budget >= 1:
        return [budget]
    below = (points - 1) // 2 if budget > least else 0
    above, most = points - 1 - below, min(1.0, 2 * budget)
    lower = [least + (budget - least) * part / (below + 1) for part in range(1, below + 1)]
    upper = [budget + (most - budget) * part / (above + 1) for part in range(1, above + 1)]
    return [*lower, budget, *upper]


def others(
    judge: Judge, examples: Sequence[Example], budgets: Sequence[float], own: float, seed: int, report: Report
) -> tuple[list[Point], dict[str, str]]:
    """All other methods at these budgets, and why some cannot be had at the ``own`` one of the schedule."""
    found: dict[str, list[Point]] = {}
    refused: dict[str, str] = {}
    for number, budget in enumerate(budgets if own < 1 else ()):
        matched = matched_reducers(judge.adapter.model, budget, seed)
        reasons = dict(matched.refused)
        for name, reducer in matched.reducers.items():
            report(f"measuring {name}", number, len(budgets))
            try:
                found.setdefault(name, []).append(Point(name, budget, *judge.measured(examples, reducer)))
            except ValueError as error:  # what only shows on a picture, such as an odd grid
                reasons[name] = str(error)
        if budget == own:
            refused = reasons
    return [point for points in found.values() for point in points], refused


class Search:
    """Schedules of a model, found on the examples of one half."""

    def __init__(self, judge: Judge, examples: Sequence[Example], depth: int, plan: Plan, report: Report) -> None:
        self.judge, self.examples, self.depth, self.plan, self.report = judge, examples, depth, plan, report
        self._known: dict[tuple[float, ...], float] = {}

    def chosen(self) -> GSearchResult:
        """The schedule that is asked for."""
        if self.plan.budget is None:
            return self.g_search()
        if self.plan.budget == 1:
            return GSearchResult([1.0] * self.depth, 0)
        return self.p_sigmoid(self.plan.budget)

    def p_sigmoid(self, budget: float) -> GSearchResult:
        """The best of some falling sigmoids of that mean."""
        first = min(4, self.plan.tries)
        evaluate = self._counted(f"searching at {budget:.3g}", self.plan.tries)
        generator = torch.Generator().manual_seed(self.plan.seed)
        return search_p_sigmoid(evaluate, self.depth, budget, START, first, self.plan.tries - first, generator)[0]

    def g_search(self) -> GSearchResult:
        """The smallest rates that lose no more than the tolerance."""
        full = self._mean([1.0] * self.depth)
        most = 1 + math.ceil(math.log2(LEVELS + 1)) * (self.depth - START)
        target = full - self.plan.tolerance / 100 - 1e-9
        return g_search(self._counted("searching", most), self.depth, target, START, LEVELS)

    def _counted(self, what: str, total: int) -> Any:
        done = 0

        def evaluate(rates: list[float]) -> float:
            nonlocal done
            self.report(what, done, total)
            done += 1
            return self._mean(rates)

        return evaluate

    def _mean(self, rates: list[float]) -> float:
        """Mean score of the schedule; one that was tried before is not asked again."""
        key = tuple(rates)
        if key not in self._known:
            self._known[key] = math.fsum(self.judge.scores(self.examples, LayerwiseKeep(rates))) / len(self.examples)
        return self._known[key]
