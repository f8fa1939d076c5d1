"""`foveal demo`: bad input costs no time, and the smoke form writes a whole report from real parts."""

import json

import pytest
from demo.pages import assert_self_contained  # tests/demo
from PIL import Image

from foveal.cli import main
from foveal.data.photos import photos
from foveal.demo import eyes as eyes_module


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(eyes_module.Eyes, "load", lambda *_: pytest.fail("the parts were loaded"))


def fail(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.usefixtures("nothing_loads")
def test_bad_input_is_one_line(capsys, tmp_path):
    (tmp_path / "note.txt").write_text("no picture")
    assert "nowhere.jpg: missing file" in fail(capsys, "--image", str(tmp_path / "nowhere.jpg"))
    assert "not an image" in fail(capsys, "--image", str(tmp_path / "note.txt"))
    assert "note.txt' is a file" in fail(capsys, "--out", str(tmp_path / "note.txt"))
    assert "seed=-1" in fail(capsys, "--seed", "-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt"]


def test_interrupted_leaves_nothing(capsys, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(eyes_module.Eyes, "load", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 130
    assert not (tmp_path / "out").exists()


def test_smoke(capsys, tmp_path):
    for name in ("a<b>.png", "second.png"):
        Image.fromarray(photos()[0].images[0]).save(tmp_path / name)
    images = [part for name in ("a<b>.png", "second.png") for part in ("--image", str(tmp_path / name))]
    main(["demo", "--smoke", "--json", "--out", str(tmp_path / "out"), *images])
    found = json.loads(capsys.readouterr().out)
    page = assert_self_contained((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 3 + 3 * 4 + 3
    assert "a<b>.png" in page.text
    assert "licensed under CC-BY 4.0" in page.text
    assert "Smoke test" in page.text
    assert [card["title"] for card in found["photos"]] == ["a<b>.png", "second.png"]
    assert {"cat"} & {word for said in found["photos"][0]["said"] for word in said["words"]}
    assert found["photos"][0]["labels"][0][0] == "cat"
    for said in found["photos"][0]["said"]:
        assert said["caption"] in page.text
    assert set(found["naming"]) == {"SITTA, class names", "SITTA, emoji names", "LiMBeR"}
    assert all(result["candidates"] == 20 for result in found["retrieval"].values())
    (looked,), (heard,) = found["fewer"]["looked"], found["decoders"]["heard"]
    assert "image" not in looked
    assert not {"image", "view"} & set(heard)
    for asked in looked["asked"]:
        assert [len(reply["kept"]) for reply in asked["replies"]] == [144, 72, 36, 18]
        assert asked["prompt"] in page.text
    assert [budget["questions"] for budget in found["fewer"]["budgets"]] == [2] * 4
    assert [told["decoder"] for told in heard["told"]] == ["greedy", "VDD", "DAMRO", "AGLA"]
    for told in heard["told"]:
        assert told["description"] in page.text
