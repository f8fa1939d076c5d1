import io
import re
import sys

import pytest
from sphinx.cmd.build import main as sphinx_build

from foveal.lab import Subject, load, method_page, publish, run_recipe
from foveal.lab.progress import CellBar
from foveal.lab.wording import claim_text, cost_text, interval, number, spread

SUBJECT = Subject(
    "A title", "A title. A venue", "https://arxiv.org/abs/1", "What it does.", "import x", "W = x\n\n    y"
)


@pytest.fixture
def outcome(stand):
    return run_recipe(load("limber"), work=stand.work)


def written(outcome, folder):
    return publish(outcome, load("limber"), SUBJECT, folder)


def test_the_page_builds_without_a_warning(outcome, tmp_path):
    _, page = written(outcome, tmp_path / "site")
    page.rename(page.with_name("index.md"))
    options = ["-D", "extensions=myst_parser", "-D", "html_theme=basic", "-D", "nitpicky=1"]
    assert sphinx_build(["-q", "-W", "-C", *options, str(page.parent), str(tmp_path / "html")]) == 0
    html = (tmp_path / "html" / "index.html").read_text()
    assert html.count("<table") == 3
    assert html.count("<img") == 3


def test_a_control_that_does_as_well_stands_first(outcome, tmp_path):
    text = written(outcome, tmp_path)[1].read_text()
    first = text.splitlines()[2]
    assert first.startswith("**The control luck does at least as well as better on score: 3 against 2.")
    fair = {**outcome.result, "controls": [row | {"wins": False} for row in outcome.result["controls"]]}
    assert "control luck" not in method_page(fair, load("limber"), SUBJECT, {})


def test_what_the_page_says(outcome, tmp_path):
    text = written(outcome, tmp_path)[1].read_text()
    assert re.search(
        r"^\| better beats plain on score \| \+\S+ \[.*\] \| \*\*reproduced\*\* \| \+1 \\\| on", text, re.M
    )
    for part in (
        "What it does.",
        "print(1 + 1)",
        "foveal demo",
        "foveal run limber",
        "Does one more",
        "W = x",
        "*Seed 0.*",
    ):
        assert part in text
    plain = method_page(outcome.result, load("limber"), SUBJECT, {})
    assert "import x" not in plain
    stand_in = load("limber").__class__(**{**vars(load("limber")), "example": ""})
    assert "import x" in method_page(outcome.result, stand_in, SUBJECT, {})


def test_smoke_and_partial_runs_say_so(outcome):
    recipe = load("limber")
    smoke = method_page({**outcome.result, "smoke": True}, recipe, SUBJECT, {})
    partial = method_page({**outcome.result, "partial": True}, recipe, SUBJECT, {})
    assert "A smoke run: the numbers mean nothing." in smoke.splitlines()[2]
    assert "A partial run" in partial.splitlines()[2]


def test_published_pages_go_beside_the_results(outcome, tmp_path):
    out = tmp_path / "docs" / "results"
    (out / "limber").mkdir(parents=True)
    (out / "limber" / "old.png").touch()
    result, page = written(outcome, out)
    assert (result, page) == (out / "limber.json", tmp_path / "docs" / "methods" / "limber.md")
    linked = re.findall(r"\]\((\.\./results/\S+\.png)\)", page.read_text())
    assert {(page.parent / link).resolve() for link in linked} == set((out / "limber").iterdir())
    assert len(linked) == 3, "summary, losses and the arm's picture; the old one is gone"


@pytest.mark.parametrize("change", [{"smoke": True}, {"partial": True}, {"seeds": [0, 1]}])
def test_only_whole_measurements_are_published(outcome, tmp_path, change):
    out = tmp_path / "docs" / "results"
    less = type(outcome)({**outcome.result, **change}, outcome.pictures)
    with pytest.raises(ValueError, match=r"out=.*published results need all arms and 3 seeds"):
        written(less, out)
    assert not out.exists()
    assert written(less, tmp_path / "elsewhere")[0].is_file()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05123, "0.0512"), (87.31, "87.3"), (-12345, "-12,345"), (999.6, "1e+03")]
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([87.1, 87.9, 87.3], "87.43 ± 0.42"),
        ([87.0, 67.0, 77.0], "77 ± 10"),
        ([0.5, 0.5], "0.5"),
        ([3], "3"),
        ([1500.0, 1900.0], "1700 ± 283"),
        ([0.00012, 0.00014], "0.000130 ± 0.000014"),
        ([51.904636, 51.904659, 51.904613], "51.9"),
    ],
)
def test_spread(values, text):
    assert spread(values) == text


def test_claims_in_words():
    row = {"arm": "a", "beats": "b", "on": "m", "by": 0.0, "lower": False, "difference": 1.0, "interval": [0.5, 1.5]}
    assert claim_text(row) == "a beats b on m"
    assert claim_text(row | {"by": 10.0, "lower": True}) == "a beats b on m by more than 10 (lower is better)"
    assert claim_text(row | {"by": -0.5}) == "a loses less than 0.5 to b on m"
    assert interval(row) == "+1 [+0.5, +1.5]"
    assert interval(row | {"interval": None}) == "+1"
    assert cost_text("flops", 3.21e9) == "3.21 G"
    assert cost_text("flops", None) == "–"
    assert cost_text("peak_memory_bytes", 3 * 2**20) == "3 MiB"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_cells_and_keeps_other_bars_quiet(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with CellBar("limber") as bar:
        bar("plain", 0, 0, 2)
        assert not sys.stderr.isatty()
        print("a word from an arm", file=sys.stderr)
        bar("better", 0, 1, 2)
        bar("", 0, 2, 2)
    assert sys.stderr is screen
    assert "a word from an arm" in screen.getvalue()
    assert "limber" in screen.getvalue()


def test_no_bar_without_a_terminal_or_without_work(monkeypatch):
    for screen, done in ((io.StringIO(), 0), (Screen(), 2)):
        monkeypatch.setattr(sys, "stderr", screen)
        with CellBar("limber") as bar:
            bar("plain", 0, done, 2)
        assert screen.getvalue() == ""
