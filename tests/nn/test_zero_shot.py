import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import build_zero_shot_classifier, ensemble_text_features, zero_shot_logits


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embed(texts):
    """Sixteen numbers from the letters of a text; its norm grows with the length."""
    return (
        torch.stack([torch.bincount(torch.tensor([ord(c) % 16 for c in text]), minlength=16) for text in texts]) * 1.0
    )


@given(st.lists(st.floats(1e-3, 1e3), min_size=15, max_size=15))
def test_ensemble_ignores_norms_and_is_unit(norms):
    features = randn(5, 3, 8)
    scaled = features * torch.tensor(norms).view(5, 3, 1)
    torch.testing.assert_close(ensemble_text_features(scaled), ensemble_text_features(features))
    torch.testing.assert_close(ensemble_text_features(scaled).norm(dim=1), torch.ones(5))


def test_classifier_against_a_slow_loop_in_the_promised_order():
    names, templates, seen = ["cat", "dog", "{}"], ["a {}.", lambda name: f"{name}s", "{} and {}"], []

    def encode(texts):
        seen.append(texts)
        return embed(texts).requires_grad_()

    classes = build_zero_shot_classifier(encode, names, templates, batch_size=4)
    assert [len(texts) for texts in seen] == [4, 4, 1]
    assert [text for texts in seen for text in texts] == [
        f(n) for n in names for f in ("a {0}.".format, "{0}s".format, "{0} and {0}".format)
    ]
    assert not classes.requires_grad
    for row, name in zip(classes, names, strict=True):
        units = [v / v.norm() for v in embed([f"a {name}.", f"{name}s", f"{name} and {name}"])]
        mean = sum(units) / 3
        torch.testing.assert_close(row, mean / mean.norm())


def test_logits():
    images, classes = randn(4, 8), unit_rows(randn(3, 8, seed=1))
    logits = zero_shot_logits(images, classes)
    for i in range(4):
        for k in range(3):
            assert float(logits[i, k]) == pytest.approx(
                100 * float(images[i] @ classes[k] / images[i].norm()), abs=1e-3
            )
    torch.testing.assert_close(zero_shot_logits(7 * images, classes, scale=10.0), logits / 10)
    half = zero_shot_logits(images.half(), classes.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, logits, atol=0.2, rtol=0)


def test_unit_rows_of_half_precision_and_of_zeros():
    assert unit_rows(torch.ones(2, 3).bfloat16()).dtype == torch.float32
    assert unit_rows(torch.ones(2, 3).double()).dtype == torch.float64
    assert torch.equal(unit_rows(torch.zeros(1, 3).half()), torch.zeros(1, 3))


def test_bad_input():
    for shape in ((5, 8), (5, 0, 8), (0, 3, 8)):
        with pytest.raises(ValueError, match="text_features"):
            ensemble_text_features(torch.zeros(shape))
    with pytest.raises(ValueError, match="text_features holds NaN"):
        ensemble_text_features(torch.full((1, 1, 2), torch.nan))
    with pytest.raises(ValueError, match="image_features holds NaN"):
        zero_shot_logits(torch.full((1, 2), torch.inf), torch.ones(1, 2))
    with pytest.raises(ValueError, match="class_features holds NaN"):
        zero_shot_logits(torch.ones(1, 2), torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"\(2, 3\) and class_features \(4, 5\)"):
        zero_shot_logits(torch.ones(2, 3), torch.ones(4, 5))


@pytest.mark.parametrize(
    ("names", "templates", "batch", "match"),
    [
        ([], ["{}"], 1, "classnames"),
        (["a"], [], 1, "templates"),
        ("abc", ["{}"], 1, "classnames='abc'"),
        (["a"], "a {}", 1, "templates='a {}'"),
        (["a"], ["a photo"], 1, "'a photo'"),
        (["a"], ["{}"], 0, "batch_size=0"),
    ],
)
def test_bad_classifiers(names, templates, batch, match):
    with pytest.raises(ValueError, match=match):
        build_zero_shot_classifier(embed, names, templates, batch_size=batch)
