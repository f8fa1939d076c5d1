import pytest

from foveal.lab import Claim, Recipe, available, load
from foveal.lab.environment import source_digest


def recipe(**changes) -> Recipe:
    arm = lambda run: {"score": 1.0}  # noqa: E731
    fields = {
        "paper": "limber",
        "arms": {"ours": arm, "theirs": arm},
        "claims": [Claim("ours", beats="theirs", on="score")],
        "controls": ["theirs"],
        "real": "foveal demo",
    }
    return Recipe(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"Ours": None, "theirs": None}}, "'Ours': use lower-case"),
        ({"arms": {"../ours": None}}, "'../ours': use lower-case"),
        ({"claims": []}, "at least one claim"),
        ({"claims": [Claim("hers", beats="theirs", on="score")]}, "claims name hers, but the arms are ours, theirs"),
        ({"claims": [Claim("ours", beats="his", on="score")]}, "claims name his"),
        ({"controls": []}, "trivial arm"),
        ({"controls": ["dice"]}, "controls name dice"),
        ({"seeds": (0, 1)}, "at least 3"),
        ({"seeds": (0, 1, 1)}, "different"),
        ({"seeds": (0, 1, -1)}, "≥ 0"),
        ({"real": " "}, "real model"),
    ],
)
def test_an_incomplete_recipe_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


def test_a_claim_needs_two_arms_and_a_finite_margin():
    with pytest.raises(ValueError, match="compared with itself"):
        Claim("ours", beats="ours", on="score")
    with pytest.raises(ValueError, match="by=nan"):
        Claim("ours", beats="theirs", on="score", by=float("nan"))


def test_load_finds_the_file_by_its_name(stand):
    found = load("limber")
    assert list(found.arms) == ["plain", "better", "luck"]
    assert found.about.startswith("Does one more make it better?")
    assert "limber" in available()
    assert not [slug for slug in available() if slug.startswith("_")]


def test_load_says_what_there_is(stand):
    with pytest.raises(ValueError, match=r"slug='limbo' has no recipe; did you mean 'limber'"):
        load("limbo")
    with pytest.raises(ValueError, match=r"slug='os'.*there are .*limber"):
        load("os")


def test_load_wants_a_recipe_of_that_name(stand):
    for text in ("", stand.file.read_text().replace('paper="limber"', 'paper="sitta"')):
        stand.write(text)
        with pytest.raises(ValueError, match=r"limber\.py must define RECIPE = Recipe\(paper='limber'"):
            load("limber")


def test_the_digest_follows_the_recipe_and_what_it_imports(stand):
    before = source_digest("limber")
    assert source_digest("limber") == before
    part = stand.file.with_name("_part.py")
    part.write_text("x = 1\n")
    stand.write(stand.file.read_text() + "\nfrom foveal.recipes import _part\n")
    importing = source_digest("limber")
    assert importing != before
    part.write_text("x = 2\n")
    assert source_digest("limber") != importing


def test_the_digest_covers_method_and_training_but_not_the_lab(stand):
    from foveal.lab.environment import _closure

    stand.write(stand.file.read_text() + "\nfrom foveal.connect.sitta import SittaMapper\nfrom foveal import zoo\n")
    files = {"/".join(path.parts[-2:]) for path in _closure("foveal.recipes.limber")}
    assert {"connect/sitta.py", "connect/base.py", "train/loop.py", "zoo/smollm2.py", "nn/linear_maps.py"} <= files
    assert not [name for name in files if name.startswith(("lab/", "cli/", "catalog/"))]
    assert "connect/limber.py" not in files
