"""How answers are read and compared."""

import pytest

from foveal.evaluate.tasks.asking import is_either, normalised, vqa_accuracy, yes_or_no


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("The Red Star.", "red star"),
        ("two", "2"),
        ("Two dogs!", "2 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("don't", "dont"),
        ("none", "0"),
        ("left-of", "left of"),
        ("  a\nb ", "b"),
        ("", ""),
    ],
)
def test_normalised(said, form):
    assert normalised(said) == form


@pytest.mark.parametrize(
    ("said", "meant", "either"),
    [
        ("Yes", "yes", True),
        ("no", "no", True),
        ("No, there is not.", "no", True),
        ("There is not a dog in the image. Yes.", "no", True),
        ("Yes. There is no cat.", "yes", True),
        ("nothing", "yes", False),
        ("A note on a knot", "yes", False),
        ("", "yes", False),
    ],
)
def test_yes_or_no(said, meant, either):
    assert yes_or_no(said) == meant
    assert is_either(said) == either


def test_vqa_accuracy_is_the_official_one():
    """Averages over ten subsets of nine, written out."""
    answers = ["red"] * 2 + ["blue"] * 8
    assert vqa_accuracy("blue", answers) == 1
    # leaving one "red" out (twice), 1 of 9 agrees; else 2 of 9
    assert vqa_accuracy("Red.", answers) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_accuracy("green", answers) == 0
    assert vqa_accuracy("the two", ["2"]) == 1
    assert vqa_accuracy("three", ["2"]) == 0
