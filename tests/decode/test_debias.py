from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from foveal.decode.debias import (
    DebiasLogitsProcessor,
    PostHocDebias,
    answer_step,
    calibration_affine,
    debias_logits,
    decoding_grid,
    generate_options,
    image_free_inputs,
    label_probs,
    post_hoc_debias,
    surface_forms,
    sweep_decoding,
)

from .tiny import VIDEO, batch, model

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/debias.npz").items()}


def probabilities(rows, labels, seed=0):
    return torch.rand(rows, labels, generator=torch.Generator().manual_seed(seed)).double()


# Closed answers -------------------------------------------------------------------------------------------------------


def test_golden():
    for mode in ("diagonal", "identity"):
        q = post_hoc_debias(GOLDEN["post__p"], GOLDEN["post__p_free"], mode)
        torch.testing.assert_close(q, GOLDEN[f"post__{mode}"])
    W, b = calibration_affine(GOLDEN["affine__p_free"])
    torch.testing.assert_close(W, GOLDEN["affine__W"])
    torch.testing.assert_close(b, GOLDEN["affine__b"])
    mixed = debias_logits(GOLDEN["contrast__logits"], GOLDEN["contrast__other"])
    torch.testing.assert_close(mixed, GOLDEN["contrast__expected"])


@pytest.mark.parametrize("mode", ["diagonal", "identity"])
def test_every_row_is_its_own_affine_map(mode):
    p, p_free = probabilities(5, 4), probabilities(5, 4, seed=1)
    q = post_hoc_debias(p, p_free, mode)
    for row in range(5):
        W, b = calibration_affine(p_free[row], mode)
        expected = W @ (p[row] / p[row].sum()) + b
        torch.testing.assert_close(q[row], expected / expected.sum() if mode == "diagonal" else expected)
        torch.testing.assert_close(post_hoc_debias(p[row : row + 1], p_free[row], mode)[0], q[row])


def test_the_prior_itself_becomes_uniform():
    p = probabilities(3, 4)
    torch.testing.assert_close(post_hoc_debias(p, p), torch.full((3, 4), 0.25).double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(post_hoc_debias(p, p, eps=0.0), torch.full((3, 4), 0.25).double())
    W, _ = calibration_affine(p[0])
    assert torch.equal(W, torch.diag(W.diagonal()))
    assert calibration_affine(torch.tensor([1.0, 0.0]))[0][1, 1] == pytest.approx(1e4)  # ε, not a division by 0


def test_identity_keeps_the_order_of_the_differences():
    """Dividing by Σq ≈ −Kε would turn the order around."""
    p, p_free = torch.tensor([[0.7, 0.3]]), torch.tensor([0.5, 0.5])
    assert post_hoc_debias(p, p_free, "identity").argmax() == 0


def test_a_skewed_prior_is_taken_out():
    truth = torch.arange(200) % 2
    evidence = torch.stack([1.0 - truth, truth.double()], -1) * 0.3 + 0.1
    skew = torch.tensor([0.8, 0.2])
    p, prior = evidence * skew, skew.expand(200, 2)
    assert (p.argmax(-1) == truth).double().mean() == 0.5
    assert (PostHocDebias().fit(prior).predict(p) == truth).all()


@pytest.mark.parametrize("mode", ["diagonal", "identity"])
def test_estimator(mode):
    p, none, unk = (probabilities(6, 3, seed) for seed in range(3))
    given = PostHocDebias(mode).predict_proba(p, none, unk)
    torch.testing.assert_close(given, post_hoc_debias(p, none + unk, mode))
    fitted = PostHocDebias(mode).fit(none, unk)
    mean = (none + unk).mean(0)
    np.testing.assert_allclose(fitted.p_free_, mean / mean.sum())
    torch.testing.assert_close(fitted.predict_proba(p), post_hoc_debias(p, mean, mode))
    torch.testing.assert_close(fitted.predict_proba(p, none), post_hoc_debias(p, none, mode))  # sets in the call win
    torch.testing.assert_close(fitted.predict_proba(p, mean), post_hoc_debias(p, mean, mode))
    assert torch.equal(fitted.predict(p), fitted.transform(p).argmax(-1))
    arrays = PostHocDebias(mode).fit(none.numpy(), unk.numpy())
    np.testing.assert_allclose(arrays.transform(p.numpy()), fitted.transform(p).numpy())
    assert isinstance(arrays.predict(p.numpy()), np.ndarray)
    assert fitted.predict_proba(p.bfloat16()).dtype == torch.bfloat16


def test_scikit_learn():
    """Two checks do not apply: fit takes sets instead of (X, y), and rows without any probability are refused."""
    skipped = {"check_fit_score_takes_y": "fit(*p_free)", "check_estimators_dtypes": "rows of zeros"}
    check_estimator(PostHocDebias(), expected_failed_checks=skipped, on_skip=None)
    p = probabilities(6, 3).numpy()
    piped = make_pipeline(PostHocDebias("identity")).fit_transform(p, np.arange(6))
    np.testing.assert_allclose(piped, PostHocDebias("identity").fit(p).transform(p))
    assert clone(PostHocDebias("identity", 0.01)).get_params() == {"mode": "identity", "eps": 0.01}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PostHocDebias().fit(), "no set"),
        (lambda: PostHocDebias().predict(probabilities(2, 3)), "call fit"),
        (lambda: PostHocDebias().fit(probabilities(2, 3), probabilities(2, 4)), "alike"),
        (lambda: PostHocDebias().fit(-probabilities(2, 3)), "Negative"),
        (lambda: PostHocDebias("softmax").fit(probabilities(2, 3)), "mode='softmax'"),
        (lambda: PostHocDebias(eps=-1e-4).fit(probabilities(2, 3)), "eps=-0.0001"),
        (lambda: PostHocDebias(eps=0).fit(torch.eye(3)[:2]), "eps=0.*never appears"),
        (lambda: PostHocDebias().fit(probabilities(2, 3)).predict(probabilities(2, 4)), "4 features"),
        (lambda: PostHocDebias().fit(torch.zeros(2, 3)), "sums to 0"),
        (lambda: post_hoc_debias(probabilities(2, 3), probabilities(2, 4)), r"p_free \(2, 4\)"),
        (lambda: post_hoc_debias(probabilities(2, 3), probabilities(3, 3)), r"p_free \(3, 3\)"),
        (lambda: post_hoc_debias(probabilities(2, 3)[0], probabilities(2, 3)), r"p \(3,\)"),
        (lambda: post_hoc_debias(torch.zeros(2, 3), probabilities(2, 3)), "p has a row that sums to 0"),
        (lambda: post_hoc_debias(torch.full((2, 3), torch.nan), probabilities(2, 3)), "p holds"),
        (lambda: calibration_affine(torch.tensor([0.5, -0.5])), "negative"),
        (lambda: calibration_affine(torch.tensor([0.5, 0.5]), "full"), "mode='full'"),
        (lambda: calibration_affine(torch.tensor([[0.5, 0.5]])), r"\(1, 2\)"),
    ],
)
def test_bad_probabilities(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_label_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 3.0]])
    p = logits.softmax(-1)
    most = label_probs(logits, [[0, 2], [3]])
    torch.testing.assert_close(most, torch.stack([p[:, [0, 2]].amax(-1), p[:, 3]], -1))
    torch.testing.assert_close(label_probs(logits, [[0, 2], [3]], "sum")[:, 0], p[:, 0] + p[:, 2])
    assert label_probs(logits.bfloat16(), [[0], [1]]).dtype == torch.float32
    for ids, message in (
        ([[0], []], r"label_ids\[1\]"),
        ([[4]], r"\[0, 4\)"),
        ([[-1]], r"\[0, 4\)"),
        ([], "not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            label_probs(logits, ids)
    with pytest.raises(ValueError, match="NaN"):
        label_probs(torch.full((1, 4), -torch.inf), [[0]])
    with pytest.raises(ValueError, match="aggregate='mean'"):
        label_probs(logits, [[0]], "mean")
    with pytest.raises(ValueError, match=r"\(B, V\)"):
        label_probs(logits[0], [[0]])


class Words:
    """A tokenizer of five tokens."""

    words = ("yes", "▁Yes", "no", "(", " YES ")

    def __len__(self):
        return len(self.words)

    def batch_decode(self, rows):
        return [self.words[row[0]].replace("▁", " ") for row in rows]


def test_surface_forms_and_the_step_of_the_answer():
    assert surface_forms(Words(), ["Yes", "no"]) == [[0, 1, 4], [2]]
    with pytest.raises(ValueError, match=r"labels=\['maybe'\]"):
        surface_forms(Words(), ["yes", "maybe"])
    logits = torch.eye(5)[[3, 3, 2, 0]]
    assert answer_step(logits, surface_forms(Words(), ["yes", "no"])) == 2
    with pytest.raises(ValueError, match="2 steps"):
        answer_step(logits[:2], [[0], [2]])


# Open answers ---------------------------------------------------------------------------------------------------------


def test_images_are_taken_out():
    ids = torch.tensor([[0, 0, 1, 9, 9, 9, 2, 9, 3], [1, 4, 9, 9, 5, 6, 7, 8, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
    free, kept = image_free_inputs(ids, 9, mask, pad_token_id=77)
    assert free.tolist() == [[77, 77, 77, 77, 1, 2, 3], [1, 4, 5, 6, 7, 8, 2]]
    assert kept.tolist() == [[0, 0, 0, 0, 1, 1, 1], [1] * 7]
    free, kept = image_free_inputs(ids, 9, mask, "unk", unk_token_id=50)
    assert free.tolist() == [[0, 0, 0, 1, 50, 2, 50, 3], [1, 4, 50, 5, 6, 7, 8, 2]]
    assert kept.sum(-1).tolist() == [5, 8]
    assert image_free_inputs(ids[1:], 9)[0].tolist() == [[1, 4, 5, 6, 7, 8, 2]]
    for change, message in (
        ({"mode": "blank"}, "mode='blank'"),
        ({"mode": "unk"}, "unk_token_id=None"),
        ({"input_ids": torch.full((1, 3), 9), "attention_mask": None}, r"input_ids\[0\].*mode='unk'"),
        ({"attention_mask": mask[:, 1:]}, r"\(2, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            image_free_inputs(**{"input_ids": ids, "image_token_id": 9, "attention_mask": mask, **change})


def test_modes_of_the_processor():
    host, inputs = model("llava"), batch("llava")
    said = {}
    for mode in ("none", "unk", "both"):
        processor = DebiasLogitsProcessor(host, inputs["input_ids"], inputs["attention_mask"], mode)
        said[mode] = [branch.logits(inputs["input_ids"]) for branch in processor.branches]
    torch.testing.assert_close(torch.stack(said["both"]), torch.stack(said["none"] + said["unk"]))
    assert not torch.allclose(*said["both"])
    scores = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    expected = debias_logits(scores, torch.stack(said["both"]).mean(0))
    torch.testing.assert_close(processor(inputs["input_ids"], scores), expected)
    with pytest.raises(ValueError, match="alpha=-1"):
        debias_logits(scores, scores, alpha=-1)


def test_clips_are_images_too():
    ids = torch.tensor([[1, VIDEO, VIDEO, 60, 60, 2]])
    processor = DebiasLogitsProcessor(model("qwen2-vl"), ids, mode="none")
    assert processor.branches[0].logits(ids).shape == (1, 64)
    assert processor.branches[0]._prefill.inputs["input_ids"].tolist() == [[1, 2]]


# Decoding settings ----------------------------------------------------------------------------------------------------


def test_grid_and_sweep():
    grid = decoding_grid()
    assert len(grid) == 48
    assert grid[0] == {"temperature": 1.0, "top_p": None, "top_k": None}
    assert len({tuple(setting.items()) for setting in grid}) == 48
    assert {setting["top_k"] for setting in grid} == {None, 1, 2, 5, 10, 20, 50, 100, 200, 500}
    assert sorted(s["top_p"] for s in grid if s["top_p"]) == pytest.approx(np.arange(0.05, 0.96, 0.05))
    assert generate_options(grid[0]) == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    found = sweep_decoding(lambda setting: setting["temperature"] + (setting["top_k"] or 0))
    assert found["default"] == (grid[0], 1.0)
    assert found["best"] == ({"temperature": 1.0, "top_p": None, "top_k": 500}, 501.0)
    assert found["spread"] == pytest.approx(501 - 0.05)
    assert [setting for setting, _ in found["table"]] == grid
    with pytest.raises(ValueError, match="empty"):
        sweep_decoding(lambda setting: 1.0, [])
    with pytest.raises(ValueError, match="finite"):
        sweep_decoding(lambda setting: float("nan"))


def test_every_setting_generates():
    host, inputs = model("llava"), batch("llava")
    processor = DebiasLogitsProcessor(host, inputs["input_ids"], inputs["attention_mask"])
    for setting in decoding_grid()[::12]:
        with torch.random.fork_rng():
            options = generate_options(setting)
            out = host.generate(**inputs, **options, logits_processor=[processor], max_new_tokens=2, pad_token_id=0)
        assert out.shape[1] > inputs["input_ids"].shape[1]
