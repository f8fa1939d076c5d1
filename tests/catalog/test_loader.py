import json
import re
from pathlib import Path

import pytest

from foveal.catalog import loader
from foveal.catalog.loader import STAGES, STATUSES, paper, papers, status, verdict


def test_the_catalogue_is_complete_and_consistent():
    entries = papers()
    assert len(entries) == len({entry.slug for entry in entries}) == len({entry.arxiv for entry in entries}) == 87
    assert list(entries) == sorted(entries, key=lambda entry: (STAGES.index(entry.stage), entry.slug))


@pytest.mark.parametrize("entry", papers(), ids=lambda entry: entry.slug)
def test_entry(entry):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.slug)
    assert re.fullmatch(r"\d{4}\.\d{5}", entry.arxiv)
    first = 2000 + int(entry.arxiv[:2])
    assert first <= entry.year <= first + 2, "published within two years of the preprint"
    assert str(entry.year) in entry.venue or entry.venue.startswith(("preprint", "technical report"))
    assert 60 <= len(entry.summary) <= 220, "one line that says something"
    assert entry.summary.endswith(".")
    assert entry.title.lower() not in entry.summary.lower()
    assert 5 <= len(entry.keywords) == len(set(entry.keywords))


def test_an_unknown_slug_gets_the_closest_ones():
    with pytest.raises(ValueError, match=r"slug='pyramid_drop'.*pyramiddrop"):
        paper("pyramid_drop")
    with pytest.raises(ValueError, match=r"slug='zzz'.*foveal list"):
        paper("zzz")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for room in (*STAGES, "recipes", "results"):
        (tmp_path / room).mkdir()
    return tmp_path


def write_result(house: Path, *verdicts: str) -> None:
    claims = [{"verdict": word} for word in verdicts]
    (house / "results" / "limber.json").write_text(json.dumps({"claims": claims}))


def test_status_follows_the_files(house):
    def now() -> str:
        return status("limber", package=house, results=house / "results")

    assert now() == "planned"
    (house / "recipes" / "limber.py").touch()
    write_result(house, "reproduced")
    assert now() == "planned", "a measurement without the method counts for nothing"
    (house / "recipes" / "limber.py").unlink()
    (house / "connect" / "limber.py").touch()
    assert now() == "part"
    (house / "results" / "limber.json").unlink()
    (house / "recipes" / "limber.py").touch()
    assert now() == "recipe"
    for verdicts, expected in (
        (["reproduced", "reproduced"], "reproduced"),
        (["not reproduced"], "not reproduced"),
        (["inconclusive"], "inconclusive"),
        (["reproduced", "inconclusive"], "mixed"),
        ([], "recipe"),
    ):
        write_result(house, *verdicts)
        assert now() == expected


def test_every_paper_has_a_status():
    assert {status(entry.slug) for entry in papers()} <= set(STATUSES)


def test_a_broken_result_file_is_named(house):
    (house / "results" / "limber.json").write_text("{")
    with pytest.raises(ValueError, match=r"limber\.json.*foveal run limber"):
        loader.result("limber", house / "results")


@pytest.mark.parametrize("given", [[], ["proven"]])
def test_only_the_labs_verdicts_count(given):
    with pytest.raises(ValueError, match="verdicts="):
        verdict(given)
