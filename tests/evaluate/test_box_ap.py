import numpy as np
import pytest

from foveal.evaluate.box_ap import BoxAP, Boxes, box_ap

SQUARE = [0.0, 0.0, 0.5, 0.5]
FAR = [0.6, 0.6, 0.9, 0.9]


def boxes(rows, labels, scores=None):
    scored = None if scores is None else np.array(scores, dtype=float)
    return Boxes(np.array(rows, dtype=float).reshape(-1, 4), np.array(labels, dtype=int), scored)


def test_perfect_and_absent():
    truth = [boxes([SQUARE, FAR], [1, 2]), boxes([FAR], [2])]
    perfect = [boxes([SQUARE, FAR], [1, 2], [0.9, 0.2]), boxes([FAR], [2], [0.1])]
    groups = {"base": [1], "novel": [2, 3]}
    assert box_ap(truth, perfect, groups) == {name: BoxAP(*[pytest.approx(100)] * 2) for name in groups}
    nothing = [boxes([], [], [])] * 2
    assert box_ap(truth, nothing, groups) == {"base": BoxAP(0, 0), "novel": BoxAP(0, 0)}


def test_thresholds():
    """An overlap of 0.72 is right at 0.5, 0.55, 0.6, 0.65 and 0.7."""
    found = [boxes([[0.0, 0.0, 0.36, 0.5]], [1], [0.5])]
    assert box_ap([boxes([SQUARE], [1])], found, {"all": [1]}) == {"all": BoxAP(pytest.approx(50), pytest.approx(100))}


def test_false_alarms_cost_by_their_rank():
    truth = [boxes([SQUARE], [1]), boxes([], [])]
    before = [boxes([SQUARE], [1], [0.5]), boxes([FAR], [1], [0.9])]
    after = [boxes([SQUARE], [1], [0.9]), boxes([FAR], [1], [0.5])]
    assert box_ap(truth, before, {"all": [1]})["all"].ap50 == pytest.approx(50)
    assert box_ap(truth, after, {"all": [1]})["all"].ap50 == pytest.approx(100)


def test_a_second_box_on_one_object_is_wrong_and_classes_do_not_mix():
    twice = [boxes([SQUARE, SQUARE], [1, 1], [0.9, 0.8]), boxes([FAR], [1], [0.7])]
    truth = [boxes([SQUARE], [1]), boxes([FAR], [1])]
    assert box_ap(truth, twice, {"all": [1]})["all"].ap50 == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert box_ap(truth, [boxes([SQUARE], [2], [1.0]), boxes([FAR], [2], [1.0])], {"all": [1]})["all"].ap50 == 0


def test_the_mean_is_over_classes():
    truth = [boxes([SQUARE, FAR, FAR], [1, 2, 2])]
    found = [boxes([SQUARE], [1], [0.5])]
    assert box_ap(truth, found, {"all": [1, 2]})["all"].ap50 == pytest.approx(50)


def test_bad_input(capsys):
    truth, found = [boxes([SQUARE], [1])], [boxes([SQUARE], [1], [0.5])]
    box_ap(truth, found, {"all": [1]})
    assert capsys.readouterr().out == ""
    for arguments, name in (
        ((truth, []), "found 0"),
        ((truth, truth), "score"),
        ((truth, [boxes([SQUARE], [1], [float("nan")])]), "score"),
        (([boxes([SQUARE], [1, 2])], found), "labels"),
        (([boxes([[0, 0, 1, float("inf")]], [1])], found), "NaN"),
    ):
        with pytest.raises(ValueError, match=name):
            box_ap(*arguments, {"all": [1]})
    with pytest.raises(ValueError, match=r"groups\['novel'\]"):
        box_ap(truth, found, {"novel": [4]})
