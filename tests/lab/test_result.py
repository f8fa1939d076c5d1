import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest

from foveal.lab import Claim, results_dir
from foveal.lab.files import write_atomically
from foveal.lab.publishing import is_published
from foveal.lab.result import compare_controls, judge_claims, thin, write_result

PUBLISHED = sorted(path for path in results_dir().glob("*.json") if path.stem != "adapt")  # which sums others up


def arm(control: bool = False, **metrics: list[float]) -> dict:
    return {"control": control, "metrics": metrics}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_results_are_what_the_lab_writes(path):
    """Nobody has typed a verdict: claims and controls follow from the numbers of the seeds."""
    result = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Claim)}
    claims = [Claim(**{name: value for name, value in row.items() if name in names}) for row in result["claims"]]
    for row, again in zip(result["claims"], judge_claims(result["arms"], claims, smoke=False), strict=True):
        interval = row.pop("interval"), again.pop("interval")
        assert interval[0] == pytest.approx(interval[1], rel=1e-9, abs=1e-12)
        assert row.keys() == again.keys()
        for name, value in again.items():  # words exactly, numbers to the last digits that another machine may change
            assert row[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), name
    assert result["controls"] == compare_controls(result["arms"], claims)
    assert result["slug"] == path.stem
    assert not result["smoke"]
    assert not result["partial"]
    assert len(result["seeds"]) >= 3
    assert list(path.with_suffix("").glob("*.png"))
    page = path.parents[1] / "methods" / f"{path.stem}.md"
    assert page.is_file() or not is_published(path.parent)


def test_a_control_that_is_not_beaten_is_found():
    arms = {
        "ours": arm(score=[3.0, 4.0], error=[1.0, 1.0], own=[0.0, 0.0]),
        "theirs": arm(score=[1.0, 1.0], error=[2.0, 2.0]),
        "dice": arm(True, score=[3.0, 4.0], error=[3.0, 3.0]),
    }
    claims = [Claim("ours", beats="theirs", on="score"), Claim("ours", beats="theirs", on="error", lower=True)]
    rows = compare_controls(arms, [*claims, claims[0], Claim("ours", beats="theirs", on="own")])
    found = [(row["control"], row["on"], row["difference"], row["wins"]) for row in rows]
    assert found == [("dice", "score", 0.0, True), ("dice", "error", -2.0, False)]


def test_a_control_does_not_compete_with_itself():
    arms = {"dice": arm(True, score=[1.0, 2.0]), "ours": arm(score=[0.0, 1.0])}
    assert compare_controls(arms, [Claim("dice", beats="ours", on="score")]) == []


def test_curves_are_thinned_to_means():
    curve = [(step, float(step)) for step in range(1000)]
    thinned = thin(curve)
    assert len(thinned) <= 60
    assert thinned[0] == [8.0, 8.0]  # steps 0 to 16
    assert thin(curve[:5]) == [[step, value] for step, value in curve[:5]]


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    write_result(tmp_path / "a.json", {"x": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.0}


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.read_bytes"])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a" / "b.json"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_reads_back_differently_is_not_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", lambda path: b"")
        with pytest.raises(OSError, match="reads back differently"):
            write_atomically(tmp_path / "a", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_files_can_be_read_by_others(tmp_path):
    write_atomically(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_reading_results_does_not_import_torch():
    script = "import sys; import foveal.lab; foveal.lab.results_dir(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_results_live_in_the_checkout_or_beside_the_installed_lab(tmp_path, monkeypatch):
    assert results_dir().parts[-2:] == ("docs", "results")
    monkeypatch.setattr("foveal.lab.result.__file__", str(tmp_path / "result.py"))
    (tmp_path / "results").mkdir()
    assert results_dir() == tmp_path / "results"
