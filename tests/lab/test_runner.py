import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.lab import Run, load, run_recipe
from foveal.lab.cells import CellStore
from foveal.lab.runner import ArmError, run_cell

ALL = [f"{arm} {seed}" for seed in (0, 1, 2) for arm in ("plain", "better", "luck")]


def measure(stand, **options):
    return run_recipe(load("limber"), work=stand.work, **options)


def numbers(result) -> dict:
    return {name: (arm["metrics"], arm["curves"]) for name, arm in result["arms"].items()}


def test_arms_run_paired_by_seed(stand):
    outcome = measure(stand)
    assert stand.cells_run() == ALL
    result = outcome.result
    assert result["seeds"] == [0, 1, 2]
    assert not result["partial"]
    plain, better = (result["arms"][name] for name in ("plain", "better"))
    assert plain["curves"]["loss"] == better["curves"]["loss"], "same data, same weights"
    assert plain["metrics"]["score"] == pytest.approx([0, 1, 2], abs=0.1)
    assert [claim["verdict"] for claim in result["claims"]] == ["reproduced", "not reproduced", "reproduced"]
    assert result["claims"][0]["difference"] == pytest.approx(1, abs=0.1)
    cost = better["cost"]
    assert (cost["parameters"], cost["trainable"], cost["tokens"]) == (4, 4, 7)
    assert cost["flops"] > 0
    assert cost["seconds"] > 0
    assert {name: picture.caption for name, picture in outcome.pictures.items()} == {"better-line.png": "Seed 0."}
    json.dumps(result, allow_nan=False)


def test_finished_cells_are_taken_over(stand):
    before = measure(stand)
    stand.cells_run()
    again = measure(stand)
    assert stand.cells_run() == []
    assert numbers(again.result) == numbers(before.result)
    assert again.result["arms"]["better"]["cost"] == before.result["arms"]["better"]["cost"]
    assert again.pictures == before.pictures
    more = measure(stand, seeds=[0, 1, 2, 3])
    assert stand.cells_run() == ["plain 3", "better 3", "luck 3"]
    assert len(more.result["arms"]["plain"]["metrics"]["score"]) == 4
    measure(stand, fresh=True)
    assert stand.cells_run() == ALL


def test_a_killed_run_goes_on(stand):
    script = f"""
import foveal.recipes
foveal.recipes.__path__.insert(0, {str(stand.file.parent)!r})
from pathlib import Path
from foveal.lab import load, run_recipe
run_recipe(load("limber"), work=Path({str(stand.work)!r}))
"""
    environment = os.environ | {"KILLED_IN": "better 1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120, check=False)
    assert done.returncode == -9
    assert stand.cells_run() == ALL[:5]
    resumed = measure(stand)
    assert stand.cells_run() == ALL[4:]
    assert numbers(resumed.result) == numbers(measure(stand, fresh=True).result)
    assert not list(stand.work.rglob(".*")), "nothing half-written is left"


def test_ctrl_c_keeps_what_is_finished(stand):
    def interrupt(arm, seed, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(stand, watch=interrupt)
    assert stand.cells_run() == ALL[:4]
    measure(stand)
    assert stand.cells_run() == ALL[4:]


def damage_text(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_number(path: Path) -> None:
    document = json.loads(path.read_text())
    document["cell"] = document["cell"].replace('"tokens": 7', '"tokens": 9')
    path.write_text(json.dumps(document))


def damage_all(path: Path) -> None:
    path.write_text("[1]")


@pytest.mark.parametrize("damage", [damage_text, damage_number, damage_all])
def test_a_damaged_cell_is_run_again(stand, damage):
    before = measure(stand)
    stand.cells_run()
    damage(stand.work / "limber" / "better-1.json")
    assert numbers(measure(stand).result) == numbers(before.result)
    assert stand.cells_run() == ["better 1"]


def test_changed_source_makes_cells_stale(stand):
    measure(stand)
    stand.cells_run()
    stand.write(stand.file.read_text().replace("bonus=1.0", "bonus=3.0"))
    changed = measure(stand).result
    assert stand.cells_run() == ALL
    assert changed["arms"]["better"]["metrics"]["error"] == [-3.0] * 3


def test_other_versions_make_cells_stale(stand, monkeypatch):
    measure(stand)
    stand.cells_run()
    monkeypatch.setattr("foveal.lab.runner.versions", lambda: {"torch": "99"})
    measure(stand)
    assert stand.cells_run() == ALL


def test_a_smoke_run_keeps_and_judges_nothing(stand):
    result = measure(stand, smoke=True).result
    assert stand.cells_run() == ALL[:3]
    assert not stand.work.exists()
    assert {claim["verdict"] for claim in result["claims"]} == {"inconclusive"}
    assert len(result["arms"]["plain"]["curves"]["loss"][0]) == 2


def test_few_seeds_give_no_verdict(stand):
    one = measure(stand, seeds=[5]).result
    assert one["claims"][0]["verdict"] == "inconclusive"
    assert one["claims"][0]["interval"] is None
    assert one["claims"][0]["difference"] == pytest.approx(1, abs=0.1)
    two = measure(stand, seeds=[5, 6]).result
    assert two["claims"][1]["verdict"] == "inconclusive"
    assert two["claims"][1]["interval"] == [1.0, 1.0]


def test_some_arms_only(stand):
    result = measure(stand, arms=["luck", "better"]).result
    assert result["partial"]
    assert list(result["arms"]) == ["better", "luck"]
    assert result["claims"] == []
    with pytest.raises(ValueError, match="arms=worse: limber has plain, better, luck"):
        measure(stand, arms=["worse"])


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_bad_seeds(stand, seeds):
    with pytest.raises(ValueError, match="seeds="):
        measure(stand, seeds=seeds)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"score": float("nan")}, "arm 'a' at seed 7: metric 'score' is nan"),
        ({"score": torch.tensor(float("inf"))}, r"metric 'score' is tensor\(inf\)"),
        ({"score": "high"}, "metric 'score' is 'high', which is not a number"),
        ({}, "must be a mapping"),
        (0.5, "must be a mapping"),
    ],
)
def test_a_metric_is_a_finite_number(returned, message):
    with pytest.raises(ArmError, match=message):
        run_cell(lambda run: returned, Run("a", 7), keep_figures=True)


def test_numbers_of_numpy_and_torch_become_plain():
    cell = run_cell(lambda run: {"a": np.float32(0.5), "b": torch.tensor(2)}, Run("a", 0), keep_figures=True)
    assert cell.metrics == {"a": 0.5, "b": 2.0}
    assert {type(value) for value in cell.metrics.values()} == {float}


def test_an_arm_that_fails_is_named():
    def arm(run):
        raise ValueError("no such thing")

    with pytest.raises(ArmError, match="arm 'a' failed at seed 7: ValueError: no such thing") as caught:
        run_cell(arm, Run("a", 7), keep_figures=True)
    assert isinstance(caught.value.__cause__, ValueError)


def global_draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_the_global_generators_are_neither_read_nor_changed():
    def arm(run):
        return dict(zip("abc", global_draws(), strict=True))

    def poisoned(poison: int) -> tuple[dict, list[float]]:
        random.seed(poison), np.random.seed(poison), torch.manual_seed(poison)  # noqa: NPY002
        metrics = run_cell(arm, Run("a", 1), keep_figures=False).metrics
        return metrics, global_draws()

    (first, after_first), (second, _) = poisoned(1), poisoned(2)
    assert first == second
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    assert after_first == global_draws()


def test_metrics_must_agree(stand):
    recipe = load("limber")
    odd = {"plain": lambda run: {"score": 1.0} if run.seed else {"other": 1.0}}
    with pytest.raises(ValueError, match="arm 'plain' returns other metrics at seed 1 than at seed 0"):
        run_recipe(type(recipe)(**{**vars(recipe), "arms": {**recipe.arms, **odd}}), work=stand.work)
    odd = {"plain": lambda run: {"other": 1.0}}
    with pytest.raises(ValueError, match="claims compare 'score', but arm 'plain' returns other"):
        run_recipe(type(recipe)(**{**vars(recipe), "arms": {**recipe.arms, **odd}}), work=stand.work, smoke=True)


def test_watch_sees_every_cell(stand):
    seen = []
    measure(stand, watch=lambda *call: seen.append(call))
    assert [f"{arm} {seed}" for arm, seed, _, _ in seen[:-1]] == ALL
    assert [done for _, _, done, _ in seen] == list(range(10))
    assert {total for *_, total in seen} == {9}


def test_a_store_knows_only_its_own_key(tmp_path):
    cell = run_cell(lambda run: {"a": 1.0}, Run("a", 0), keep_figures=True)
    CellStore(tmp_path, "one").save(cell)
    assert CellStore(tmp_path, "one").load("a", 0) == cell
    assert CellStore(tmp_path, "two").load("a", 0) is None
    assert CellStore(tmp_path, "one").load("a", 1) is None
