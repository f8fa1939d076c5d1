import json

import numpy as np
import pytest

from foveal.cli import main
from foveal.data.record import Sample
from foveal.data.webdataset import Shards, write_shards


def run(capsys, *arguments):
    """Exit code, standard output and standard error of ``foveal curate ...``."""
    try:
        main(["curate", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture
def manifest(tmp_path):
    rows = [
        {"id": i, "codes": [i % 3, 10 * (i % 3)], "itm": i / 20, "caption": f"caption {i}", "generated": f"said {i}"}
        for i in range(20)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_manifest(manifest, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    code, text, _ = run(capsys, "tldr", "--manifest", manifest, "--out", out, "--clusters", 3, "--every", 2)
    assert code == 0
    assert "redundant in its cluster" in text
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert 2 <= len(kept) <= 5
    for row in kept:
        assert row["id"] >= 10
        assert row["caption"] == f"caption {row['id']}; said {row['id']}"
        assert row["original"] == f"caption {row['id']}"
    code, text, _ = run(capsys, "tldr", "--manifest", manifest, "-o", out, "--clusters", 3, "--json")
    assert json.loads(text)["kept"] == len(kept)  # every second is the default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", 3], "out is missing"),
        (["-o", "x.jsonl"], "either shards or --manifest"),
        (["--manifest", "{}", "-o", "x.tar"], "ends in .jsonl"),
        (["--manifest", "{}", "-o", "x.jsonl", "--every", 2, "--fraction", 0.5], "exactly one"),
        (["--manifest", "{}", "-o", "x.jsonl", "--clusters", 21], "num_clusters=21"),
        (["--manifest", "{}", "-o", "x.jsonl", "--clusters", 3, "--fraction", 0], "fraction=0.0"),
        (["--manifest", "nowhere.jsonl", "-o", "x.jsonl"], "nowhere.jsonl"),
        (["missing-{0..3}.tar", "-o", "x"], "not one of 4 files exists"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, manifest, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, "tldr", *(manifest if part == "{}" else part for part in arguments))
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"codes": [1]}', 'line 2: needs "itm"'),
        ("[]", 'needs "codes"'),
        *(
            (f'{{"codes": {codes}, "itm": 1, "caption": "a"}}', 'line 2: "codes"')
            for codes in ("[]", '["a", 1]', "[null, 1]", "[true, 1]", "[1.5, 1]", "[-1, 1]", f"[{10**20}, 1]")
        ),
        *(
            (f'{{"codes": [1, 2], "itm": 1, "caption": "a", "generated": {text}}}', 'line 2: "generated"')
            for text in ("null", "3")
        ),
    ],
)
def test_a_bad_line_is_named(line, message, manifest, capsys, tmp_path):
    first, *_ = manifest.read_text().splitlines()
    manifest.write_text(f"{first}\n{line}\n")
    arguments = ["--manifest", manifest, "-o", tmp_path / "out.jsonl", "--clusters", 1, "--itm-fraction", 1]
    code, _, error = run(capsys, "tldr", *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_shards(tmp_path, capsys):
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), (rng.integers(0, 255, (24, 24, 3), np.uint8),), (f"a thing {i}",)) for i in range(12)]
    shards = write_shards(samples, str(tmp_path / "in" / "%d.tar"), 6)
    out = tmp_path / "out"
    settings = ["-o", out, "--clusters", 2, "--every", 1, "--steps", 2, "--batch-size", 6]
    code, text, _ = run(capsys, "tldr", *shards, *settings)
    assert code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] == 6
    assert sorted(path.name for path in out.glob("*.png")) == ["caption.png", "kept.png"]
    assert "![kept](kept.png)" in (out / "report.md").read_text()
    found = list(Shards(sorted(out.glob("kept-*.tar"))))
    assert len(found) == 6
    assert all(new.caption.startswith(new.meta["tldr"]["original"]) for new in found)
    again, text, _ = run(capsys, "tldr", *shards, *settings, "--json")
    assert again == 0
    assert json.loads(text) == report
    wrong = run(capsys, "tldr", *shards, "-o", out, "--clusters", 2, "--matcher", "nano-sd")
    assert wrong[0] == 2
    assert "give a dual encoder" in wrong[2]
