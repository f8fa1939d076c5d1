"""`foveal caption` on a user's own files."""

import json

from .test_catalog import fail, partly, run


def test_captions_as_json_and_for_people(loaded, album, capsys):
    cat, church = str(album / "cat.jpg"), str(album / "trip" / "church.webp")
    found = json.loads(run(capsys, "caption", cat, church, "--json"))
    rows = found["captions"]
    assert found["errors"] == []
    assert [row["image"] for row in rows] == [cat, church]
    assert "cat" in rows[0]["caption"]  # the photo lies upside down in its file
    assert rows[1]["classes"][0]["name"] == "church"
    assert rows[0]["candidates"][0]["text"] == rows[0]["caption"]
    said = run(capsys, "caption", cat)
    assert rows[0]["caption"] in said
    assert "words: cat" in said


def test_one_broken_picture_does_not_stop_the_others(loaded, album, capsys):
    files = str(album / "broken.png"), str(album / "cat.jpg")
    said = partly(capsys, "caption", *files, "--json")
    found = json.loads(said.out)
    assert [row["image"] for row in found["captions"]] == [files[1]]
    assert [row["image"] for row in found["errors"]] == [files[0]]
    assert "broken.png" in found["errors"][0]["error"]
    assert "broken.png" in said.err
    said = partly(capsys, "caption", *files)
    assert found["captions"][0]["caption"] in said.out
    assert "1 of 2 pictures could not be read" in said.err


def test_nothing_to_caption(album, capsys):
    assert "broken.png" in fail(capsys, "caption", str(album / "broken.png"))
    assert "missing.jpg" in fail(capsys, "caption", str(album / "missing.jpg"))
    told = fail(capsys, "caption", str(album / "broken.png"), str(album / "no.png"))
    assert all(text in told for text in ("broken.png", "no.png", "none of the 2"))
    assert "no picture" in fail(capsys, "caption")


def test_help_tells_the_limits(capsys):
    for command in ("caption", "ask", "classify", "search"):
        try:
            run(capsys, command, "--help")
        except SystemExit:
            assert "tulips" in capsys.readouterr().out
