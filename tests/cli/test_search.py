"""`foveal search` on a user's own folder."""

import json

from foveal.cli import main

from .test_catalog import fail, run


def test_searching(loaded, album, capsys):
    main(["search", str(album), "a kitten", "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["pictures"], found["skipped"]) == (2, 1)
    assert [row["image"].rsplit("/", 1)[1] for row in found["found"]] == ["cat.jpg", "church.webp"]
    assert "broken.png" in said.err
    assert "1 of 3 files skipped" in said.err
    lines = run(capsys, "search", str(album), "a chapel", "--k", "1").splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("church.webp")


def test_bad_input(album, tmp_path, capsys):
    assert "k=0" in fail(capsys, "search", str(album), "cat", "--k", "0")
    assert "text" in fail(capsys, "search", str(album), "")
    assert "missing" in fail(capsys, "search", str(tmp_path / "none"), "cat")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in fail(capsys, "search", str(tmp_path / "empty"), "cat")
