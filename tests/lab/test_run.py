import io
import random
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveal.lab import Run, figures
from foveal.lab.run import SMOKE_SIZE, SMOKE_STEPS, measured
from foveal.train.meters import Meter


def test_what_is_random_depends_on_seed_and_purpose_and_not_on_the_arm():
    draw = lambda run, purpose="": torch.rand(4, generator=run.generator(purpose)).tolist()  # noqa: E731
    ours, theirs = Run("ours", 3), Run("theirs", 3)
    assert draw(ours) == draw(theirs) == draw(ours), "arms are paired"
    assert draw(ours, "shuffle") != draw(ours)
    assert draw(Run("ours", 4)) != draw(ours)
    assert ours.rng("x").random() == theirs.rng("x").random() != ours.rng("y").random()


def test_weights_are_the_same_whatever_was_drawn_before():
    def weights(run):
        return run.build(nn.Linear, 4, 2, bias=False).weight

    torch.manual_seed(1)
    first = weights(Run("ours", 3))
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(weights(Run("theirs", 3)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(Run("ours", 4)), first)


def test_a_smoke_run_is_small():
    smoke, full = Run("a", 0, smoke=True), Run("a", 0)
    assert (smoke.steps(400), smoke.size(6000), smoke.steps(1), smoke.size(5)) == (SMOKE_STEPS, SMOKE_SIZE, 1, 5)
    assert (full.steps(400), full.size(6000)) == (400, 6000)


def test_a_second_fit_begins_a_second_curve():
    run = Run("a", 0)
    for _ in range(3):
        for step in range(2):
            run.record("loss", step + 0.5, step)
        run.record("accuracy", 1.0, 0)
    assert run.curves["loss"] == run.curves["loss 2"] == run.curves["loss 3"] == [(0, 0.5), (1, 1.5)]
    assert set(run.curves) == {"loss", "loss 2", "loss 3", "accuracy", "accuracy 2", "accuracy 3"}


def test_pictures_are_the_same_bytes_every_time_and_pyplot_forgets_them():
    def draw():
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        return figure

    run, again = Run("a", 0), Run("a", 0)
    run.figure("line.png", draw())
    again.figure("line.png", draw())
    assert run.figures == again.figures
    assert not plt.get_fignums()
    assert Image.open(io.BytesIO(run.figures["line.png"].png)).format == "PNG"
    assert run.figures["line.png"].caption == "a: line"


@pytest.mark.parametrize("name", ["line", "../line.png", ".png", "a/b.png", "line.jpg"])
def test_a_picture_has_a_plain_name(name):
    with pytest.raises(ValueError, match="plain file name"):
        Run("a", 0).figure(name, figures.subplots()[0])


def product(run: Run, n: int) -> torch.Tensor:
    run.record("size", n, 0)
    run.cost(nn.Linear(2, 1), tokens=5)
    return torch.ones(n, n) @ torch.ones(n, n)


def outer(run: Run) -> torch.Tensor:
    return run.shared(product, 10) + run.shared(product, 20)[:10, :10]


def cost_of(parts: dict, *wanted) -> tuple[Run, Meter]:
    run = Run("a", 0, counts_flops=True, parts=parts)
    with Meter(flops=True) as meter:
        for make, *arguments in wanted:
            run.shared(make, *arguments)
    return run, measured(run, meter)


def test_a_shared_part_is_made_once_and_counts_for_every_arm():
    made = []

    def make(run, n):
        made.append(n)
        time.sleep(0.1)  # next to which the time of all else is small
        return product(run, n)

    parts = {}
    first, cost = cost_of(parts, (make, 10))
    second, again = cost_of(parts, (make, 10))
    assert made == [10]
    assert cost.flops == again.flops == 2 * 10**3
    assert cost.parameters == again.parameters == 3
    assert cost.tokens == again.tokens == 5
    assert again.seconds >= cost.seconds / 2 > 0
    assert first.curves == second.curves == {"size": [(0, 10.0)]}
    _, other = cost_of(parts, (make, 20))
    assert made == [10, 20]
    assert other.flops == 2 * 20**3


def test_a_shared_part_does_not_depend_on_who_asks_first():
    def drawn(run, inner=None):
        if inner is not None:
            run.shared(drawn)
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002 - as libraries do

    def first_asked(draws):
        torch.rand(draws), np.random.rand(draws), [random.random() for _ in range(draws)]  # noqa: NPY002
        states = torch.get_rng_state(), np.random.get_state()[2], random.getstate()  # noqa: NPY002
        run = Run("a", 3, parts={})
        part, nested = run.shared(drawn), run.shared(drawn, "nested")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[2], random.getstate()) == states[1:]  # noqa: NPY002
        return part, nested

    assert first_asked(0) == first_asked(7)
    assert first_asked(1)[1] == (lambda run: run.shared(drawn, "nested"))(Run("b", 3, parts={}))
    assert Run("a", 4).shared(drawn) != first_asked(0)[0]


def test_parts_within_parts_count_once():
    """The second arm takes one part from the first; its other part is new, and uses both."""
    parts = {}
    cost_of(parts, (product, 10))
    _, cost = cost_of(parts, (outer,))
    assert cost.flops == 2 * 10**3 + 2 * 20**3
    assert cost.parameters == 6
    _, again = cost_of(parts, (outer,))
    assert again.flops == cost.flops


def test_figures_need_no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    grid = figures.picture_grid([np.zeros((8, 8, 3), np.uint8)] * 5, ["a rather long caption of a picture"] * 5)
    assert len([axis for axis in grid.axes if axis.images]) == 5
    with pytest.raises(ValueError, match="captions has 1 texts for 2 pictures"):
        figures.picture_grid([np.zeros((8, 8, 3))] * 2, ["a"])
    with pytest.raises(ValueError, match="0 pictures"):
        figures.picture_grid([], [])


def test_long_captions_stay_in_the_figure():
    grid = figures.picture_grid([np.zeros((8, 8, 3), np.uint8)] * 8, ["one of many words " * 12] * 8)
    pixels = np.asarray(Image.open(io.BytesIO(figures.png(grid))).convert("L"))
    assert (pixels[-5:] == 255).all(), "nothing reaches the lower edge"
    assert (pixels[len(pixels) // 2 + 200 :] < 128).any()
