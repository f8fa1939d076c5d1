"""`foveal classify` on a user's own file."""

import json

from .test_catalog import fail, run


def test_classifying(loaded, album, capsys):
    church = str(album / "trip" / "church.webp")
    found = json.loads(run(capsys, "classify", church, "teapot, church ,dog", "--json"))
    assert found["labels"][0]["label"] == "church"
    assert abs(sum(row["probability"] for row in found["labels"]) - 1) < 1e-3
    lines = run(capsys, "classify", church, "teapot,church").splitlines()
    assert lines[1].startswith("church")
    assert "%" in lines[1]


def test_bad_input(album, capsys):
    cat = str(album / "cat.jpg")
    for labels in ("cat", "cat,cat", ",", ""):
        assert "labels" in fail(capsys, "classify", cat, labels)
    assert "broken.png" in fail(capsys, "classify", str(album / "broken.png"), "a,b")
