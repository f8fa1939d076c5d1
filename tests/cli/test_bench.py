"""`foveal bench`, called as the command calls it."""

import json
import sys
from pathlib import Path

import pytest
from lab.conftest import stand  # noqa: F401

from foveal.catalog.loader import papers, recipe_file
from foveal.cli import bench, main


@pytest.fixture
def place(stand):  # noqa: F811
    return stand


def test_one_summary(capsys, place):
    main(["bench", "--only", "limber"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["slug", "verdict", "seconds"]
    assert lines[1].split()[:2] == ["limber", "mixed"]
    assert json.loads(Path("foveal-results/limber.json").read_text())["slug"] == "limber"
    place.cells_run()
    main(["bench", "--only", "limber"])
    assert place.cells_run() == []


def test_smoke(capsys, place):
    main(["bench", "--only", "limber", "--smoke"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["limber", "runs"]
    assert len(place.cells_run()) == 3


def test_a_failing_recipe_does_not_stop_the_others(capsys, place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(bench, "chosen", lambda stage, only: ["sitta", "limber"])
    monkeypatch.delitem(sys.modules, "foveal.recipes.sitta", raising=False)
    broken = place.file.with_name("sitta.py")
    text = place.file.read_text().replace('paper="limber"', 'paper="sitta"')
    broken.write_text(text.replace("    note(run)\n", "    raise RuntimeError('broken')\n"))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--smoke"])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "failed" in lines[1]
    assert "arm 'plain' failed at seed 0: RuntimeError: broken" in lines[1]
    assert "runs" in lines[2]


def test_what_is_chosen():
    having = [entry.slug for entry in papers() if recipe_file(entry).is_file()]
    assert bench.chosen(None, None) == having
    connect = [entry.slug for entry in papers() if entry.stage == "connect"]
    assert bench.chosen("connect", None) == [slug for slug in having if slug in connect]
    assert bench.chosen(None, "sitta, limber") == ["limber", "sitta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "limbre"], "slug='limbre' is not in the catalogue"),
        (["--only", "limber", "--stage", "decode"], "no paper has a recipe and fits"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# The matrix of pre-training -------------------------------------------------------------------------------------------

VALUES = {"retrieval": [40.0, 42.0, 44.0], "zero-shot": [50.0, 50.0, 50.0], "s/step": [0.1] * 3, "MiB": [40.0] * 3}


@pytest.fixture
def found():
    """A result of the matrix with two questions."""
    cost = {"parameters": 276_481}
    better = {**VALUES, "retrieval": [50.0, 53.0, 56.0]}
    wrong = {name: values for name, values in VALUES.items() if name != "zero-shot"}
    arms = {
        name: {"metrics": metrics, "cost": cost, "control": name == "shuffled"}
        for name, metrics in (("clip", VALUES), ("filip", better), ("shuffled", wrong))
    }
    claim = {
        "arm": "filip", "beats": "clip", "on": "retrieval", "by": 0.0, "lower": False, "published": "more",
        "difference": 11.0, "sd": 1.0, "interval": [8.5, 13.5], "verdict": "reproduced",
    }  # fmt: skip
    return {
        "arms": arms,
        "claims": [claim],
        "controls": [],
        "columns": {"retrieval": "R@1", "zero-shot": "names"},
        "elsewhere": {"dito": "trains a detector"},
        "smoke": False,
        "seeds": [0, 1, 2],
        "command": "foveal bench --only matrix",
        "hardware": {"cpu": "some", "cores": 2, "threads": 2, "gpu": None},
    }


def test_the_page_of_the_matrix(found):
    from foveal.cli import _bench_matrix

    page = _bench_matrix.markdown(found, "matrix.png")
    lines = page.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| objective"))
    assert lines[header].count("|") == 7
    clip, filip, shuffled, dito = lines[header + 2 : header + 6]
    assert clip.startswith("| clip | 42.0 [37.0, 47.0] | 50.0 [50.0, 50.0] | 276 k | 0.1 | 40 |")
    assert "53.0 [45.5, 60.5] ✓" in filip
    assert shuffled.startswith("| shuffled (control) | 42.0")
    assert _bench_matrix.SHUFFLED in shuffled
    assert dito == "| dito | n/a | n/a | n/a | n/a | n/a |"
    assert "`dito` has no place on two towers: it trains a detector" in page
    assert "filip beats clip on retrieval" in page


def test_the_chart_of_the_matrix(found):
    from foveal.cli import _bench_matrix
    from foveal.lab.figures import png

    drawn = png(_bench_matrix.chart(found))
    assert drawn.startswith(b"\x89PNG")
    assert drawn == png(_bench_matrix.chart(found))
    found["arms"]["filip"]["metrics"] = VALUES
    assert drawn != png(_bench_matrix.chart(found))


def test_the_matrix_runs(capsys, tmp_path, monkeypatch):
    """Two of the arms; all of them are a matter of minutes."""
    import dataclasses

    from foveal.recipes import _pretrain_matrix as matrix

    few = {name: matrix.RECIPE.arms[name] for name in ("clip", "grain", "more_texts", "shuffled")}
    claims = [claim for claim in matrix.RECIPE.claims if claim.arm in few]
    monkeypatch.setattr(matrix, "RECIPE", dataclasses.replace(matrix.RECIPE, arms=few, claims=claims))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["bench", "--only", "matrix", "--smoke"])
    text = capsys.readouterr().out
    assert "hard negatives" in text
    assert "uniter: not applicable" in text
    result = json.loads(Path("foveal-results/smoke/pretrain_matrix.json").read_text())
    assert set(matrix.COLUMNS) <= set(result["arms"]["grain"]["metrics"])
    assert set(matrix.COLUMNS) - set(result["arms"]["shuffled"]["metrics"]) == {"noise"}
    assert "**A smoke run" in Path("foveal-results/smoke/pretrain_matrix.md").read_text()
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--only", "matrix", "--smoke", "--out", "docs/results"])
    assert stopped.value.code == 2
