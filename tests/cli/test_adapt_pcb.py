import io
import json

import pytest
import torch

from foveal.cli._adapt_pcb_labels import Asked, chosen, labels_of_csv

NAMES = ["dog", "door", "owl"]


def test_answers_by_number_name_or_beginning():
    assert [chosen(text, NAMES) for text in ("1", "owl\n", "O", "doo", "do", "", "4", "0", "x")] == [
        *("dog", "owl", "owl", "door"),
        *(None, None, None, None, None),
    ]


def pictures(folder, n=4):
    from PIL import Image

    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    return [path.name for path in paths], paths


def test_answers_are_kept_at_once_and_never_asked_again(tmp_path, monkeypatch):
    keys, paths = pictures(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("2\nnonsense\nowl\n"))
    with pytest.raises(ValueError, match="run the command again"):
        Asked(tmp_path / "out", NAMES, keys, paths)(torch.tensor([0, 1, 2]))
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"0.png": "door", "1.png": "owl"}
    assert (tmp_path / "out" / "to_label.png").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    assert Asked(tmp_path / "out", NAMES, keys, paths)(torch.tensor([0, 1, 2])) == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\n", "image and label"), ("image,label\n0.png,cat\n", "'cat'"), ("image,label\n0.png,dog\n", "1.png")],
)
def test_bad_label_files_are_refused(tmp_path, text, says):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        labels_of_csv(tmp_path / "l.csv", NAMES, ["0.png", "1.png"])
