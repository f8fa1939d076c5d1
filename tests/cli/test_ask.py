"""`foveal ask` on a user's own file."""

import json

from .test_catalog import fail, run


def test_asking(loaded, album, capsys):
    cat = str(album / "cat.jpg")
    found = json.loads(run(capsys, "ask", cat, "Is there a cat?", "--json"))
    assert found["answer"].startswith("Yes, ")
    assert found["question"] == "Is there a cat?"
    assert "tabby cat" in found["seen"]
    said = run(capsys, "ask", cat, "What is this?")
    assert "cat" in said.split("seen:")[0]


def test_bad_input(album, capsys):
    assert "question" in fail(capsys, "ask", str(album / "cat.jpg"), " ")
    assert "broken.png" in fail(capsys, "ask", str(album / "broken.png"), "What is this?")
