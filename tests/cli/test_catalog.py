"""`foveal list`, `foveal show` and `foveal find`, called as the command calls them."""

import json
import subprocess
import sys

import pytest

from foveal.catalog.loader import papers, status
from foveal.cli import main


def run(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Standard error of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def partly(capsys: pytest.CaptureFixture, *arguments: str):
    """What is told by a command that must end with exit code 1: an answer for some of its inputs."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    return capsys.readouterr()


def test_list_as_json_is_the_catalogue(capsys):
    rows = json.loads(run(capsys, "list", "--json"))
    assert [row["slug"] for row in rows] == [entry.slug for entry in papers()]
    assert all(row["status"] == status(row["slug"]) for row in rows)


def test_list_filters(capsys):
    stage = json.loads(run(capsys, "list", "--stage", "decode", "--json"))
    assert {row["slug"] for row in stage} == {"agla", "damro", "debias"}
    planned = json.loads(run(capsys, "list", "--status", "planned", "--json"))
    assert {row["slug"] for row in planned} == {e.slug for e in papers() if status(e.slug) == "planned"}
    assert "invalid choice" in fail(capsys, "list", "--stage", "kitchen").lower()


def test_list_as_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = run(capsys, "list", "--stage", "compress")
    assert all(slug in text for slug in ("aim", "fopru", "gsearch", "lrs", "pyramiddrop"))
    assert "5 papers" in text
    assert "clip" not in text.split()


def test_show(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = run(capsys, "show", "limber")
    assert "Linearly Mapping from Image to Text Space" in text
    assert "https://arxiv.org/abs/2209.15162" in text
    card = json.loads(run(capsys, "show", "limber", "--json"))
    assert card["status"] == status("limber")
    assert card["use"][0].startswith("from foveal.connect.limber import ")


def test_what_show_says_to_type_works(capsys):
    for slug in (entry.slug for entry in papers() if status(entry.slug) != "planned"):
        exec(json.loads(run(capsys, "show", slug, "--json"))["use"][0], {})


def test_show_names_the_closest_slug(capsys):
    assert "limber" in fail(capsys, "show", "limbre")


def test_find(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    need = "fine-tune with a handful of singular values"
    assert "foveal show svfit" in run(capsys, "find", need)
    rows = json.loads(run(capsys, "find", need, "--k", "3", "--json"))
    assert len(rows) == 3
    assert rows[0]["slug"] == "svfit"
    assert rows[0]["score"] >= rows[1]["score"]


def test_find_needs_a_need(capsys):
    err = fail(capsys, "find", " ")
    assert err.startswith("foveal: query=")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "list --help", "adapt glov --help"])
def test_output_that_nobody_reads_to_its_end(command):
    """As when it goes to head."""
    start = [sys.executable, "-c", "from foveal.cli import main; main()", *command.split()]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
