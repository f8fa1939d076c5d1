"""`foveal search` on a user's own folder."""

import json

from .test_catalog import fail, partly, run


def test_searching(loaded, album, capsys):
    said = partly(capsys, "search", str(album), "a kitten", "--json")
    found = json.loads(said.out)
    assert found["pictures"] == 2
    assert [row["image"] for row in found["errors"]] == [str(album / "broken.png")]
    assert "broken.png" in found["errors"][0]["error"]
    assert [row["image"].rsplit("/", 1)[1] for row in found["found"]] == ["cat.jpg", "church.webp"]
    assert "broken.png" in said.err
    assert "1 of 3 pictures could not be read" in said.err
    (album / "broken.png").unlink()
    lines = run(capsys, "search", str(album), "a chapel", "--k", "1").splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("church.webp")


def test_bad_input(loaded, album, tmp_path, capsys):
    assert "k=0" in fail(capsys, "search", str(album), "cat", "--k", "0")
    assert "text" in fail(capsys, "search", str(album), "")
    assert "missing" in fail(capsys, "search", str(tmp_path / "none"), "cat")
    (album / "cat.jpg").unlink()
    (album / "trip" / "church.webp").unlink()
    assert "broken.png" in fail(capsys, "search", str(album), "cat")
    (album / "cut.png").write_bytes(b"no picture")
    told = fail(capsys, "search", str(album), "cat")
    assert all(text in told for text in ("broken.png", "cut.png", "none of the 2"))
    (tmp_path / "empty").mkdir()
    assert "no pictures" in fail(capsys, "search", str(tmp_path / "empty"), "cat")
