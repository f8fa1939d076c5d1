import json
import os

import pytest
import torch

import foveal
from foveal.compress import schedule
from foveal.compress.gsearch import LayerwiseKeep, p_sigmoid

from .tiny import BY_NAME

RATES = [1.0, 1.0, 0.7, 0.5, 1 / 3, 0.1]


def test_what_was_saved_is_applied(tmp_path):
    """Through the names that the stage offers."""
    path = tmp_path / "new" / "rates.json"
    foveal.compress.save(RATES, path, model="tiny", budget=0.6, tasks=["größe"])
    reducer = foveal.compress.load(str(path))
    assert type(reducer) is LayerwiseKeep
    assert reducer.rates == tuple(RATES)
    kind = BY_NAME["llava"]
    model = kind.model()
    assert reducer.attach(model) is reducer
    with torch.no_grad():
        model(**kind.singles(model)[0])
    assert reducer.image_tokens[0].tolist() == [16, 16, 11, 8, 5, 1]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["notes"] == {"model": "tiny", "budget": 0.6, "tasks": ["größe"]}


def test_every_bit_of_the_rates_is_kept(tmp_path):
    rates = p_sigmoid(32, 9.3, 0.37, 0.013)
    schedule.save(rates, tmp_path / "rates.json")
    assert schedule.load(tmp_path / "rates.json").rates == tuple(rates)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rates.json"
    schedule.save(RATES, path)

    def fail(handle):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        schedule.save([1.0, 1.0], path)
    assert schedule.load(path).rates == tuple(RATES)
    assert [left.name for left in tmp_path.iterdir()] == ["rates.json"]


def file(**changes):
    return json.dumps({"format": "foveal-schedule", "version": 1, "rates": RATES, "notes": {}} | changes)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON.*foveal.compress.save"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ("[1, 1, 0.5]", 'lacks "format": "foveal-schedule"'),
        (file(format="other"), "lacks"),
        (file(version=2), "version 2.*reads 1: update"),
        (file(rates="1, 1"), '"rates" must be a list of numbers'),
        (file(rates=[1, True, 0.5]), '"rates" must be a list of numbers'),
        (file(rates=[1, 1, "0.5"]), '"rates" must be a list of numbers'),
        (file(rates=[1, 1, float("nan")]), r"must lie in \[0, 1\]"),
        (file(rates=[1, 1, 10**400]), "too large"),
        (file(rates=[1, 1, 0.2, 0.5]), "must not rise"),
        (file(rates=[]), "layers 0 and 1"),
    ],
)
def test_files_that_are_no_schedule(tmp_path, text, match):
    path = tmp_path / "rates.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=match) as caught:
        schedule.load(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_saved(tmp_path):
    for rates, notes, match in [
        ([1, 1, 2], {}, r"\[0, 1\]"),
        (RATES, {"score": float("nan")}, "notes=.*JSON cannot hold"),
        (RATES, {"model": object()}, "notes=.*JSON cannot hold"),
    ]:
        with pytest.raises(ValueError, match=match):
            schedule.save(rates, tmp_path / "rates.json", **notes)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        schedule.load(tmp_path / "rates.json")
