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
