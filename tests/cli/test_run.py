"""`foveal run`, called as the command calls it, on a recipe of our own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab.conftest import stand  # noqa: F401
from rich.console import Console

from foveal.cli import main
from foveal.cli.run import metrics_tables

ALL = [f"{arm} {seed}" for seed in (0, 1, 2) for arm in ("plain", "better", "luck")]


@pytest.fixture(autouse=True)
def place(stand):  # noqa: F811
    return stand


def run(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    main(["run", *arguments])
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_tables_and_files(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = run(capsys, "limber")
    assert "better beats plain on score" in text
    assert "reproduced" in text
    assert "The control luck does at least as well as better" in text
    assert {path.name for path in Path("foveal-results").rglob("*") if path.is_file()} == {
        "limber.json",
        "limber.md",
        "summary.png",
        "loss.png",
        "better-line.png",
    }


@pytest.mark.parametrize("width", [60, 80])
def test_tables_of_many_metrics_are_as_many_as_it_takes(width):
    names = [f"share of answers at {share} %" for share in range(0, 100, 5)]
    metrics = {name: [12.25, 13.5, 14.75] for name in names}
    arms = {name: {"control": False, "metrics": metrics} for name in ("one", "two")}
    arms["none of these"] = {"control": True, "metrics": {}}
    console = Console(width=width)
    with console.capture() as captured:
        console.print(*metrics_tables({"arms": arms}, width))
    rows = [line for line in captured.get().splitlines() if line.startswith("one")]
    assert sum(row.count("13.5 ± 1.2") for row in rows) == len(names)
    assert len(rows) > 1
    assert "none of these" not in captured.get()


def test_json_is_the_result_file(capsys):
    printed = json.loads(run(capsys, "limber", "--json"))
    assert printed == json.loads(Path("foveal-results/limber.json").read_text())
    assert printed["command"] == "foveal run limber"
    assert printed["versions"]["foveal"]
    assert printed["hardware"]["cpu"]
    assert printed["arms"]["luck"]["control"]


def test_arms_and_seeds(capsys, place):
    result = json.loads(run(capsys, "limber", "--arms", "plain, better", "--seeds", "4,5,6,7", "--json"))
    assert place.cells_run() == [f"{arm} {seed}" for seed in (4, 5, 6, 7) for arm in ("plain", "better")]
    assert result["partial"]
    assert result["command"] == "foveal run limber --arms plain,better --seeds 4,5,6,7"
    assert next(claim["verdict"] for claim in result["claims"]) == "reproduced"


def test_a_second_call_goes_on_and_fresh_starts_again(capsys, place):
    run(capsys, "limber", "--arms", "plain")
    place.cells_run()
    run(capsys, "limber")
    assert place.cells_run() == [cell for cell in ALL if "plain" not in cell]
    run(capsys, "limber", "--fresh")
    assert place.cells_run() == ALL


def test_smoke_goes_to_its_own_folder(capsys, place):
    assert "the numbers mean nothing" in run(capsys, "limber", "--smoke")
    assert place.cells_run() == ALL[:3]
    assert Path("foveal-results/smoke/limber.md").is_file()
    assert not Path("foveal-results/limber.json").exists()


def test_docs_results_are_published_whole_or_not_at_all(capsys, place):
    for options in (["--smoke"], ["--arms", "plain"], ["--seeds", "0,1"]):
        assert "out=docs/results: published results need" in fail(capsys, "limber", "--out", "docs/results", *options)
    assert place.cells_run() == [], "said before the time is spent"
    run(capsys, "limber", "--out", "docs/results")
    assert Path("docs/results/limber.json").is_file()
    assert "# limber: Linearly Mapping" in Path("docs/methods/limber.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["limbre"], "slug='limbre' is not in the catalogue; did you mean limber"),
        (["limber", "--arms", "plain,worse"], "arms=worse: limber has plain, better, luck"),
        (["limber", "--seeds", "0;1"], "seeds='0;1': must be whole numbers"),
        (["limber", "--seeds", "1,1"], "seeds=[1, 1]: must be different"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert message in fail(capsys, *arguments)


def test_a_paper_without_a_recipe(capsys, monkeypatch):
    monkeypatch.setattr("foveal.lab.recipe.available", lambda: ["limber"])
    assert "slug='sitta' has no recipe; there are limber" in fail(capsys, "sitta")


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to one process")
def test_ctrl_c_keeps_finished_cells(place):
    slow = place.file.read_text().replace("    note(run)\n", "    note(run)\n    __import__('time').sleep(0.5)\n")
    place.write(slow)
    script = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off for what runs in the background
import foveal.recipes
foveal.recipes.__path__.insert(0, {str(place.file.parent)!r})
from foveal.cli import main
main(["run", "limber"])
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (place.log.exists() and "better 0" in place.log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("foveal: interrupted: finished steps are kept")
    assert place.cells_run() == ALL[:2]
    main(["run", "limber", "--json"])
    assert place.cells_run() == ALL[1:]
