"""`foveal caption` on a user's own files."""

import json

from .test_catalog import fail, run


def test_captions_as_json_and_for_people(loaded, album, capsys):
    cat, church = str(album / "cat.jpg"), str(album / "trip" / "church.webp")
    rows = json.loads(run(capsys, "caption", cat, church, "--json"))
    assert [row["image"] for row in rows] == [cat, church]
    assert "cat" in rows[0]["caption"]  # the photo lies upside down in its file
    assert rows[1]["classes"][0]["name"] == "church"
    assert rows[0]["candidates"][0]["text"] == rows[0]["caption"]
    said = run(capsys, "caption", cat)
    assert rows[0]["caption"] in said
    assert "words: cat" in said


def test_one_broken_picture_does_not_stop_the_others(loaded, album, capsys):
    from foveal.cli import main

    main(["caption", str(album / "broken.png"), str(album / "cat.jpg"), "--json"])
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1
    assert "broken.png" in said.err


def test_nothing_to_caption(album, capsys):
    assert "broken.png" in fail(capsys, "caption", str(album / "broken.png"))
    assert "missing.jpg" in fail(capsys, "caption", str(album / "missing.jpg"))
    assert "none of the 2" in fail(capsys, "caption", str(album / "broken.png"), str(album / "no.png"))
    assert "no picture" in fail(capsys, "caption")


def test_help_tells_the_limits(capsys):
    for command in ("caption", "ask", "classify", "search"):
        try:
            run(capsys, command, "--help")
        except SystemExit:
            assert "tulips" in capsys.readouterr().out
