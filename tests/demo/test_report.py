"""The report is one safe file: pictures inside, nothing from outside, all that is said is text."""

import numpy as np
import pytest

from foveal.demo import report
from foveal.demo.decoders import Decoders, Habit, Heard, Told
from foveal.demo.fewer_tokens import Asked, Budget, FewerTokens, Looked, Reply
from foveal.demo.measure import Estimate, Naming, Retrieval
from foveal.demo.run import CONNECTORS, LIMBER, Card, Findings, Said

from .pages import assert_self_contained

EVIL = "<script>alert('x')</script> & \"quoted\""


def card(size=(90, 120)):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    said = tuple(Said(name, EVIL, (EVIL,), 1.25) for name in CONNECTORS)
    return Card(EVIL, "your picture", image, said, ((EVIL, 0.5), ("cat", -0.1)), 20)


def fewer():
    image = np.full((48, 48, 3), 90, np.uint8)
    estimate = Estimate(0.75, 0.6, 0.86)
    replies = (Reply(1.0, EVIL, True, (), (0, 1, 2, 3), 4, 1.0), Reply(0.25, EVIL, False, (), (2,), 4, 0.4321))
    asked = Asked("existence", EVIL, ("yes", "yep"), replies)
    told = Asked(
        "description", "Describe.", (), (Reply(0.5, f"A dog and a zebra. {EVIL}", None, ("zebra",), (0, 1), 4, 0.6),)
    )
    budgets = (Budget(1.0, 64, estimate, estimate), Budget(0.125, 64, estimate, Estimate(0.5, 0.4, 0.6)))
    return FewerTokens("FoPru", 6_200_000, 2, (Looked("world-1-1", image, ("dog", "cat"), (asked, told)),), budgets)


def decoders():
    image, view = np.full((48, 48, 3), 90, np.uint8), np.zeros((12, 12, 3), np.uint8)
    told = (
        Told("greedy", EVIL, False, "A dog and a zebra.", ("zebra",)),
        Told("VDD", "no", True, EVIL, ()),
    )
    heard = Heard("world-1-1", image, ("dog", "cat"), EVIL, ("no",), (1, 2), view, told)
    habit = Habit("greedy", 16, Estimate(0.123, 0.05, 0.2), Estimate(0.8, 0.7, 0.9), 41.6, 2.04, 3.3)
    return Decoders(2, (heard,), (habit,))


@pytest.fixture
def found():
    share, low = Estimate(0.175, 0.1, 0.25), Estimate(0.02, 0.01, 0.03)
    ranks = Retrieval(200, 140, share, Estimate(0.3, 0.2, 0.41), 18.0)
    names = Naming(140, share, low, Estimate(0.155, 0.08, 0.22))
    return Findings(
        photos=[card((400, 900))],
        emoji=[card()],
        retrieval=dict.fromkeys(CONNECTORS[:2], ranks),
        naming=dict.fromkeys(CONNECTORS, names),
        fewer=fewer(),
        decoders=decoders(),
        seconds={"train LiMBeR": 61.5},
        method="procrustes",
        method_scores={"ols": 0.1, "procrustes": 0.2},
        train_families=1269,
        steps=60,
    )


def test_self_contained_and_escaped(found):
    page = assert_self_contained(report.render(found))
    assert page.tags.count("img") == 2 + 3 + 3
    cards = 2 * (1 + 3 + 3 + 1)  # titles, captions, words, label
    assert page.text.count(EVIL) == cards + 1 + 2 + 1 + 1 + 2  # prompt, replies, description; question, told
    assert "licensed under CC-BY 4.0" in page.text
    assert "Apache-2.0" in page.text
    assert "Smoke test" not in page.text
    assert "35 × chance" in page.text
    assert f"{LIMBER} beats shuffled pictures: +15.5 points, 95 % interval +8.0 to +22.0" in " ".join(page.text.split())


def test_answers_are_marked_in_words_too(found):
    text = report.render(found)
    page = assert_self_contained(text)
    said = " ".join(page.text.split())
    assert f"✓ right “{EVIL}”" in said
    assert f"✗ wrong “{EVIL}”" in said
    assert "1 of 4 tokens, 43 % of the FLOPs" in said.replace("\u00a0", " ")
    assert text.count('<b class="invented">zebra</b>') == text.count('<b class="there">dog</b>') == 2
    assert "from all tokens to the fewest: right, wrong" in text
    assert page.tags.count("details") == 2
    assert "12.3 %" in said.replace("\u00a0", " ")


def test_a_connector_that_does_not_win_is_said_not_to(found):
    lost = Naming(140, Estimate(0.02, 0, 0.1), Estimate(0.02, 0.01, 0.03), Estimate(0.0, -0.02, 0.02))
    found.naming[LIMBER] = lost
    assert "does not clearly beat" in report.render(found)


def test_smoke_numbers_are_marked(found):
    found.smoke = True
    assert "Its numbers mean nothing" in report.render(found)


def test_bars_stay_on_their_axis(found):
    found.naming[LIMBER] = Naming(3, Estimate(1, 1, 1), Estimate(0, 0, 0), Estimate(1, 1, 1))
    for chart in report.charts(found):
        assert all(row["estimate"].high <= chart["limit"] <= 1 for row in chart["rows"])
    assert report.charts(found)[0]["limit"] == pytest.approx(0.3)


def test_large_pictures_are_shrunk_and_drawings_kept_exact():
    large = report.data_uri(np.zeros((3000, 2000, 3), np.uint8))
    assert large.startswith("data:image/jpeg")
    assert len(large) < 40_000
    assert report.data_uri(np.zeros((144, 144, 3), np.uint8)).startswith("data:image/png")


def test_an_old_report_survives_a_failure(found, tmp_path, monkeypatch):
    path = report.write(found, tmp_path / "new" / "folder")
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(found, path.parent)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert path.read_bytes() == old
