"""easy-VQA: every picture with all of its questions, and answers that the picture confirms."""

import numpy as np
import pytest

from foveal.data.easyvqa import samples


@pytest.mark.parametrize(("split", "pictures", "questions"), [("train", 4_000, 38_575), ("test", 1_000, 9_673)])
def test_counts(split, pictures, questions):
    found = samples(split)
    assert len(found) == pictures
    assert sum(len(item[2]) for item in found.items) == questions
    assert samples(split) is found


def test_kinds_fit_their_answers():
    allowed = {
        "existence": {"yes", "no"},
        "shape": {"circle", "rectangle", "triangle"},
        "colour": {"green", "red", "gray", "teal", "black", "yellow", "brown", "blue"},
    }
    seen = {kind: set() for kind in allowed}
    for _, _, questions in samples("test").items:
        for question in questions:
            seen[question.kind].update(question.answers)
    assert seen == allowed


def test_the_picture_belongs_to_the_question():
    reddish = {"red": lambda c: c[0] > c[1:].max() + 40, "blue": lambda c: c[2] > c[:2].max() + 40}
    checked = 0
    for index in range(120):
        sample = samples("test")[index]
        colour = next((q.answers[0] for q in sample.questions if q.kind == "colour"), None)
        if colour in reddish:
            background = sample.image[0, 0].astype(int)
            pixels = sample.image.reshape(-1, 3).astype(int)
            shape = pixels[np.abs(pixels - background).sum(1) > 60]
            assert reddish[colour](np.median(shape, axis=0)), sample.key
            checked += 1
    assert checked > 10


def test_samples_are_attributed_and_keys_unique():
    sample = samples("train")[7]
    assert sample.key == "easy-vqa/train/7"
    assert sample.image.shape == (64, 64, 3)
    assert sample.meta["licence"] == "MIT"
    assert len({item[1] for item in samples("train").items}) == 4_000


def test_unknown_split():
    with pytest.raises(ValueError, match="split='val': must be 'train' or 'test'"):
        samples("val")
