import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.pretrain.clip import LogitScale, clip_loss
from foveal.pretrain.filip import (
    FILIPObjective,
    filip_loss,
    label_patch_map,
    prompt_ensemble_similarity,
    select_tokens,
    token_similarity,
    word_patch_alignment,
)

from .filip_inputs import chunked, objective, tokens
from .measure import run

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/filip.npz").items()}


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within the specification's 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def random_tokens(bi, bt, n, l, d, seed, masked=True):
    rng = torch.Generator().manual_seed(seed)
    image, text = torch.randn(bi, n, d, generator=rng).double(), torch.randn(bt, l, d, generator=rng).double()
    masks = [torch.rand(*x.shape[:2], generator=rng) < 0.6 if masked else None for x in (image, text)]
    for mask in masks if masked else ():
        mask[:, -1] |= ~mask.any(1)
    return image, text, *masks


def by_loops(image, text, image_mask, text_mask):
    """The equations, one pair of samples at a time; differentiable."""
    rows = []
    for i, patches in enumerate(image):
        patches = F.normalize(patches if image_mask is None else patches[image_mask[i]], dim=-1)
        for j, words in enumerate(text):
            scores = patches @ F.normalize(words if text_mask is None else words[text_mask[j]], dim=-1).T
            rows.append(torch.stack([scores.max(1).values.mean(), scores.max(0).values.mean()]))
    both = torch.stack(rows).view(len(image), len(text), 2)
    return both[..., 0], both[..., 1]


# Golden ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 3, 50])
def test_golden_loss(chunk):
    ref = golden("loss")
    leaves = [ref[name].clone().requires_grad_() for name in ("image_tokens", "text_tokens")]
    masks = {"image_mask": ref["image_mask"], "text_mask": ref["text_mask"]}
    for found, name in zip(token_similarity(*leaves, **masks, chunk_size=chunk), ("image_to_text", "text_to_image")):
        close(found, ref[f"{name}_similarity"])
    smoothing = float(ref["label_smoothing"])
    out = filip_loss(*leaves, float(ref["scale"]), **masks, label_smoothing=smoothing, chunk_size=chunk)
    for name in ("loss", "image_to_text", "text_to_image"):
        close(getattr(out, name), ref[name])
    close(out.logits_per_image, ref["scale"] * ref["image_to_text_similarity"])
    close(out.logits_per_text, ref["scale"] * ref["text_to_image_similarity"].T)
    out.loss.backward()
    close(leaves[0].grad, ref["grad_image"])
    close(leaves[1].grad, ref["grad_text"])


def test_golden_selection():
    ref = golden("select")
    sides = {name: (ref[f"{name}_tokens"], ref[f"{name}_mask"]) for name in ("image", "text")}
    for name, other in (("image", "text"), ("text", "image")):
        (own, mask), (reference, reference_mask) = sides[name], sides[other]
        options = {"mask": mask, "reference_mask": reference_mask}
        selected, real, indices = select_tokens(own, reference, float(ref["keep_ratio"]), **options)
        assert torch.equal(real, ref[f"{name}_selected_mask"])
        assert torch.equal(indices[real], ref[f"{name}_indices"][real])
        assert torch.equal(selected, torch.stack([rows[chosen] for rows, chosen in zip(own, indices, strict=True)]))


def test_golden_prompts():
    ref = golden("prompt")
    arguments = ref["image_tokens"], ref["prompt_tokens"], ref["prompt_mask"]
    for direction in ("image_to_text", "text_to_image"):
        close(prompt_ensemble_similarity(*arguments, image_mask=ref["image_mask"], direction=direction), ref[direction])


def test_golden_alignment():
    ref = golden("alignment")
    found = word_patch_alignment(ref["image_tokens"], ref["text_tokens"], ref["text_mask"])
    assert found.dtype == torch.int64
    assert torch.equal(found, ref["alignment"])
    grid = tuple(ref["grid"].tolist())
    assert torch.equal(label_patch_map(found, ref["label_positions"], grid), ref["map"])
    assert torch.equal(label_patch_map(found[1:], ref["label_positions"].tolist(), grid, has_cls=False), ref["map"])


# Similarity -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.booleans(),
    st.sampled_from([None, 1, 2, 9]),
)  # fmt: skip
def test_against_slow_loops(bi, bt, n, l, seed, masked, chunk):
    image, text, image_mask, text_mask = random_tokens(bi, bt, n, l, 3, seed, masked)
    leaves = image.requires_grad_(), text.requires_grad_()
    masks = {"image_mask": image_mask, "text_mask": text_mask}
    found, expected = token_similarity(*leaves, **masks, chunk_size=chunk), by_loops(*leaves, image_mask, text_mask)
    weights = [torch.randn(bi, bt, generator=torch.Generator().manual_seed(seed)).double() for _ in range(2)]
    gradients = []
    for scores in (found, expected):
        total = sum((weight * score).sum() for weight, score in zip(weights, scores, strict=True))
        gradients.append(torch.autograd.grad(total, leaves))
    for left, right in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(left, right, atol=1e-9, rtol=1e-7)


def test_gradient_by_finite_differences():
    image, text, image_mask, text_mask = random_tokens(3, 2, 4, 3, 5, 1)
    leaves = image.requires_grad_(), text.requires_grad_()
    for chunk in (1, 2):
        score = lambda v, t, chunk=chunk: token_similarity(  # noqa: E731
            v, t, image_mask=image_mask, text_mask=text_mask, chunk_size=chunk
        )
        assert torch.autograd.gradcheck(score, leaves)
    with pytest.raises(RuntimeError, match="token_similarity cannot be differentiated twice"):
        torch.autograd.grad(token_similarity(*leaves)[0].sum(), leaves, create_graph=True)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradient_of_one_side_alone(frozen):
    image, text, *_ = random_tokens(3, 3, 4, 3, 5, 1)
    both = [x.clone().requires_grad_() for x in (image, text)]
    filip_loss(*both, 5.0).loss.backward()
    one = [x.clone().requires_grad_(side != frozen) for side, x in enumerate((image, text))]
    filip_loss(*one, 5.0).loss.backward()
    assert one[frozen].grad is None
    torch.testing.assert_close(one[1 - frozen].grad, both[1 - frozen].grad)


@pytest.mark.parametrize("axes", [(1, 2), (0, 1)])
@pytest.mark.parametrize("side", [0, 1])
def test_gradient_of_tokens_that_are_a_view(axes, side):
    """As ``map.flatten(2).mT`` and a tower that puts the sequence first give them."""
    leaves = [x.requires_grad_() for x in random_tokens(3, 3, 4, 5, 6, 0, masked=False)[:2]]
    viewed = list(leaves)
    viewed[side] = leaves[side].transpose(*axes).contiguous().transpose(*axes)
    assert not viewed[side].is_contiguous()
    for left, right in zip(
        *(torch.autograd.grad(filip_loss(*both, 5.0).loss, leaves) for both in (viewed, leaves)), strict=True
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("wide", [0, 1])
def test_sides_of_different_dtypes(wide):
    """As if both were of the wider one."""
    image, text = (x.float() for x in random_tokens(3, 3, 4, 5, 6, 0, masked=False)[:2])
    double = image.double(), text.double()
    mixed = [double[side] if side == wide else (image, text)[side] for side in range(2)]
    assert filip_loss(*mixed, 5.0).loss.dtype == torch.double
    torch.testing.assert_close(filip_loss(*mixed, 5.0).loss, filip_loss(*double, 5.0).loss)
    assert torch.equal(select_tokens(*mixed, 0.5)[2], select_tokens(*double, 0.5)[2])
    assert torch.equal(word_patch_alignment(mixed[0][0], mixed[1][0]), word_patch_alignment(double[0][0], double[1][0]))


def test_one_token_each_is_clip():
    image, text, *_ = random_tokens(4, 4, 1, 1, 6, 0, masked=False)
    out, clip = filip_loss(image, text, 7.0), clip_loss(image[:, 0], text[:, 0], 7.0)
    torch.testing.assert_close(out.logits_per_image, clip.logits_per_image)
    torch.testing.assert_close(out.logits_per_text, clip.logits_per_text)
    torch.testing.assert_close(out.loss, clip.loss)


def test_invariants():
    image, text, *_ = random_tokens(3, 4, 5, 6, 4, 0, masked=False)
    scores = token_similarity(image, text)
    assert all(float(score.max()) <= 1 for score in scores)
    assert not torch.allclose(*scores)
    lengths = torch.arange(1, 6).double()[:, None]
    for same in (
        token_similarity(image[:, torch.tensor([3, 0, 4, 1, 2])], text[:, torch.arange(5, -1, -1)]),
        token_similarity(image.repeat(1, 2, 1), text),
        token_similarity(image * lengths, text),
    ):
        for left, right in zip(same, scores, strict=True):
            torch.testing.assert_close(left, right)
    torch.testing.assert_close(token_similarity(image, image)[0].diagonal(), torch.ones(3).double())


@pytest.mark.parametrize("padding", [0.0, 1e3, -1e3, math.nan, math.inf])
def test_padding_never_wins(padding):
    """All real cosines are negative: a padded score of zero would be the largest."""
    image, text, *_ = random_tokens(3, 3, 4, 5, 6, 0, masked=False)
    image, text = (image.abs() + 0.1).requires_grad_(), (-text.abs() - 0.1).requires_grad_()
    expected = filip_loss(image, text, 10.0)
    gradients = torch.autograd.grad(expected.loss, (image, text))
    assert float(expected.logits_per_image.detach().max()) < 0
    longer = [
        torch.cat([x.detach(), torch.full((3, 2, 6), padding).double()], 1).requires_grad_() for x in (image, text)
    ]
    masks = [F.pad(torch.ones(x.shape[:2], dtype=torch.bool), (0, 2)) for x in (image, text)]
    found = filip_loss(*longer, 10.0, image_mask=masks[0], text_mask=masks[1])
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image)
    torch.testing.assert_close(found.logits_per_text, expected.logits_per_text)
    for left, right in zip(torch.autograd.grad(found.loss, longer), gradients, strict=True):
        torch.testing.assert_close(left[:, :-2], right)
        assert left[:, -2:].abs().max() == 0


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self.numel = max(self.numel, made.numel())
        return out


def test_no_tensor_holds_all_token_scores():
    """Neither in the forward nor in the backward pass: a tile of one text, or the tokens themselves."""
    for batch in (8, 16):
        image, text, *_ = random_tokens(batch, batch, 9, 7, 8, 0, masked=False)
        with Largest() as largest:
            filip_loss(image.requires_grad_(), text.requires_grad_(), 5.0, chunk_size=1).loss.backward()
        assert largest.numel == batch * 9 * 8


def test_what_is_kept_for_backward():
    image, text, *_ = random_tokens(8, 8, 9, 7, 8, 0, masked=False)
    kept = []

    def note(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_similarity(image.requires_grad_(), text.requires_grad_(), chunk_size=3)
    places = [tensor for tensor in kept if not tensor.is_floating_point()]
    assert sum(tensor.nbytes for tensor in places) == 8 * 8 * (9 + 7)  # a byte for every maximum


def test_many_tokens():
    """More tokens than a byte can number."""
    image, text, *_ = random_tokens(2, 2, 300, 2, 4, 0, masked=False)
    leaves = image.requires_grad_(), text.requires_grad_()
    gradients = [
        torch.autograd.grad(scores[1].sum(), leaves)
        for scores in (token_similarity(*leaves), by_loops(*leaves, None, None))
    ]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_smoothing():
    image, text, *_ = random_tokens(4, 4, 3, 3, 5, 0)
    out, smooth = filip_loss(image, text, 3.0), filip_loss(image, text, 3.0, label_smoothing=0.1)
    spread = [-rows.log_softmax(1).mean() for rows in (out.logits_per_image, out.logits_per_text)]
    torch.testing.assert_close(smooth.image_to_text, 0.9 * out.image_to_text + 0.1 * spread[0])
    torch.testing.assert_close(smooth.text_to_image, 0.9 * out.text_to_image + 0.1 * spread[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_tokens": torch.ones(3, 4)}, r"image_tokens \(3, 4\) must be \(B, N, D\)"),
        ({"text_tokens": torch.ones(3, 0, 6)}, r"text_tokens \(3, 0, 6\)"),
        ({"text_tokens": torch.ones(3, 4, 5)}, "alike in width"),
        ({"text_tokens": torch.ones(2, 4, 6)}, "3 image_tokens and 2 text_tokens"),
        ({"image_mask": torch.ones(3, 5)}, "image_mask is of torch.float32: must be bool"),
        ({"text_mask": torch.ones(3, 4, dtype=torch.long)}, r"text_mask is of torch.int64.*mask.bool\(\)"),
        ({"text_mask": torch.ones(3, 5, dtype=torch.bool)}, r"text_mask \(3, 5\) must be \(3, 4\)"),
        ({"image_mask": torch.arange(15).view(3, 5) > 4}, "image_mask is False everywhere in sample 0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"image_tokens": torch.full((3, 5, 6), math.nan)}, "image_tokens holds NaN"),
        ({"text_tokens": torch.full((3, 4, 6), math.inf)}, "text_tokens holds NaN"),
    ],
)
def test_bad_arguments(change, match):
    arguments = {"image_tokens": torch.ones(3, 5, 6), "text_tokens": torch.ones(3, 4, 6), "scale": 2.0}
    with pytest.raises(ValueError, match=match):
        filip_loss(**{**arguments, **change})


# Selection, prompts, alignment ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_selection_against_a_slow_loop(n, ratio, seed):
    rows, reference, mask, reference_mask = random_tokens(3, 2, n, 4, 3, seed)
    selected, real, indices = select_tokens(rows, reference, ratio, mask=mask, reference_mask=reference_mask)
    others = F.normalize(reference[reference_mask], dim=-1)
    for i in range(3):
        best = (F.normalize(rows[i], dim=-1) @ others.T).max(1).values
        scores = [float(score) if mask[i, k] else -math.inf for k, score in enumerate(best)]
        order = sorted(range(n), key=lambda k: (-scores[k], k))[: max(1, int(n * ratio))]
        assert indices[i].tolist() == order
        assert real[i].tolist() == mask[i][order].tolist()
        assert torch.equal(selected[i], rows[i][order])


def test_selection_keeps_the_lower_index_of_equals_and_carries_gradient():
    rows = torch.ones(1, 8, 3).requires_grad_()
    selected, real, indices = select_tokens(rows, torch.ones(2, 2, 3), 0.25)
    assert indices.tolist() == [[0, 1]]
    assert real.all()
    selected.sum().backward()
    assert rows.grad[0, :2].eq(1).all()
    assert rows.grad[0, 2:].eq(0).all()
    assert select_tokens(torch.ones(1, 100, 3), torch.ones(1, 1, 3), 0.29)[2].shape == (1, 29)


@pytest.mark.parametrize(("n", "d"), [(5, 33), (13, 17), (30, 64)])
def test_equal_tokens_keep_their_order(n, d):
    """Float32 products may differ in the last digits for equal tokens; the order is that of float64 cosines."""
    rng = torch.Generator().manual_seed(n)
    token, reference = torch.randn(1, 1, d, generator=rng), torch.randn(2, 3, d, generator=rng)
    equal = token * 2.0 ** torch.arange(n)[:, None]  # multiples without rounding
    assert select_tokens(equal, reference[:1, :1], 1.0)[2].tolist() == [list(range(n))]
    rows = torch.randn(3, n, d, generator=rng)[:, torch.randint(n, (2 * n,), generator=rng)]
    mask = torch.rand(3, 2 * n, generator=rng) < 0.7
    cosines = F.normalize(rows.double(), dim=-1) @ F.normalize(reference.double(), dim=-1).flatten(0, 1).T
    best = (cosines.amax(2) * 2**30).round().masked_fill(~mask, -math.inf)
    order = best.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(select_tokens(rows, reference, 1.0, mask=mask)[2], order)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("image_tokens", lambda x, real, bad, _: token_similarity(bad, x, image_mask=real)),
        ("text_tokens", lambda x, real, bad, _: token_similarity(x, bad, text_mask=real)),
        ("tokens", lambda x, real, bad, _: select_tokens(bad, x, mask=real)),
        ("reference_tokens", lambda x, real, bad, _: select_tokens(x, bad, reference_mask=real)),
        ("prompt_tokens", lambda x, real, bad, _: prompt_ensemble_similarity(x, bad[:, None], real[:, None])),
        ("image_tokens", lambda x, real, bad, _: prompt_ensemble_similarity(bad, x[:, None], _, image_mask=real)),
        ("text_tokens", lambda x, real, bad, _: word_patch_alignment(x[0], bad[0], real[0])),
        ("image_tokens", lambda x, real, bad, _: word_patch_alignment(bad[0][real[0]], x[0])),
    ],
)
def test_only_real_tokens_must_be_finite(name, call, bad):
    x = random_tokens(2, 2, 3, 3, 4, 0, masked=False)[0]
    real, spoilt = torch.ones(2, 3, dtype=torch.bool), x.clone()
    spoilt[0, 1, 2] = bad
    with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity"):
        call(x, real, spoilt, real[:, None])
    real[0, 1] = False
    call(x, real, spoilt, torch.ones(2, 1, 3, dtype=torch.bool))


def test_bad_selection():
    rows, reference = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    for ratio in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="keep_ratio="):
            select_tokens(rows, reference, ratio)
    with pytest.raises(ValueError, match="alike in width"):
        select_tokens(rows, reference[..., :3])
    with pytest.raises(ValueError, match="reference_mask is False everywhere"):
        select_tokens(rows, reference, reference_mask=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"reference_tokens \(3, 4\)"):
        select_tokens(rows, reference[0])


def test_bad_prompts_and_maps():
    image, prompts = torch.ones(2, 3, 4), torch.ones(5, 2, 3, 4)
    real = torch.ones(5, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="direction='both'"):
        prompt_ensemble_similarity(image, prompts, real, direction="both")
    with pytest.raises(ValueError, match=r"\(K, C, L, D\)"):
        prompt_ensemble_similarity(image, prompts[0], real[0])
    alignment = torch.zeros(13, dtype=torch.long)
    for grid, has_cls in (((3, 5), True), ((3, 4), False), ((-3, -4), True)):
        with pytest.raises(ValueError, match=r"grid=\("):
            label_patch_map(alignment, [1], grid, has_cls=has_cls)
    with pytest.raises(ValueError, match=r"text_tokens \(1, 0, 4\)"):
        word_patch_alignment(torch.ones(3, 4), torch.ones(0, 4))
    with pytest.raises(ValueError, match="text_mask is False everywhere"):
        word_patch_alignment(torch.ones(3, 4), torch.ones(2, 4), torch.zeros(2, dtype=torch.bool))


# Objective ------------------------------------------------------------------------------------------------------------


def test_objective_is_projection_selection_and_loss():
    image, text, text_mask, image_mask = tokens(4, 0)
    model = objective()
    assert set(model.state_dict()) == {"image_projection.weight", "text_projection.weight", "logit_scale.log_scale"}
    assert isinstance(model.logit_scale, LogitScale)
    v, t = model.image_projection(image), model.text_projection(text)
    expected = filip_loss(v, t, model.logit_scale(), image_mask=image_mask, text_mask=text_mask)
    torch.testing.assert_close(model(image, text, text_mask, image_mask).loss, expected.loss)
    thin = objective(keep_ratio=0.5, label_smoothing=0.1)
    (v2, v2_mask, _), (t2, t2_mask, _) = (
        select_tokens(v, t, 0.5, mask=image_mask, reference_mask=text_mask),
        select_tokens(t, v, 0.5, mask=text_mask, reference_mask=image_mask),
    )
    assert (v2.shape[1], t2.shape[1]) == (2, 2)
    expected = filip_loss(v2, t2, model.logit_scale(), image_mask=v2_mask, text_mask=t2_mask, label_smoothing=0.1)
    torch.testing.assert_close(thin(image, text, text_mask, image_mask).loss, expected.loss)
    everything = objective(keep_ratio=1.0)(image, text, text_mask, image_mask)
    torch.testing.assert_close(everything.loss, model(image, text, text_mask, image_mask).loss)


def test_thinned_objective_trains_and_refuses():
    result = run(objective(keep_ratio=0.5), tokens(6, 0))
    for gradient in [*result["inputs"], *result["parameters"].values()]:
        assert 0 < torch.tensor(gradient).abs().sum() < math.inf
    image, text, *masks = tokens(4, 0)
    image[-1, 0, 0] = math.nan
    with pytest.raises(ValueError, match="image_tokens holds NaN"):
        objective(keep_ratio=0.5)(image, text, *masks)
    for options in ({"keep_ratio": 0.0}, {"label_smoothing": 1.0}, {"init_scale": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options)).removesuffix("_scale")):
            objective(**options)


def test_every_chunk_gives_the_same_under_autocast():
    dense = run(objective(), tokens(7, 0))
    for size in (1, 2, 7, 100):
        found = run(objective(), tokens(7, 0), lambda model, inputs, size=size: chunked(model, inputs, size))
        assert found["loss"] == pytest.approx(dense["loss"], abs=1e-5)
        for left, right in zip(found["inputs"], dense["inputs"], strict=True):
            torch.testing.assert_close(torch.tensor(left), torch.tensor(right), atol=1e-5, rtol=1e-4)
    image, text, *_ = random_tokens(4, 4, 3, 3, 5, 0)
    leaves = image.float().requires_grad_(), text.float().requires_grad_()
    plain = torch.autograd.grad(filip_loss(*leaves, 9.0).loss, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = torch.autograd.grad(filip_loss(*leaves, 9.0).loss, leaves)
    for left, right in zip(plain, mixed, strict=True):
        torch.testing.assert_close(left, right)


def test_on_transformers_clip():
    """A training step of the real class, and the alignment of one picture with its text."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 28, "eos_token_id": 29, "pad_token_id": 0}
    text = {**size, "vocab_size": 30, "max_position_embeddings": 8, **ends}
    vision = {**size, "hidden_size": 24, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
        head = FILIPObjective(24, 16, 12)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[28, 3, 4, 29], [28, 5, 29, 0], [28, 6, 7, 29]])
    attention_mask = (ids != 0).long()
    states = model.vision_model(pixels).last_hidden_state
    words = model.text_model(ids, attention_mask=attention_mask).last_hidden_state
    head(states, words, attention_mask.bool()).loss.backward()
    head.logit_scale.clamp_()
    used = [*model.vision_model.encoder.named_parameters(), *model.text_model.encoder.named_parameters()]
    assert all(float(parameter.grad.abs().sum()) > 0 for name, parameter in used if name.endswith("weight"))
    v, t = head.image_projection(states), head.text_projection(words)
    found = word_patch_alignment(v[1], t[1], attention_mask[1].bool())
    assert found.max() < 3  # never the padding
    assert label_patch_map(found, [1], (2, 2)).shape == (2, 2)


# Two processes --------------------------------------------------------------------------------------------------------


def test_processes_with_texts_of_different_lengths(two_processes):
    """Each process pads its texts to its own longest; the loss is that of one process that pads them all alike."""
    image, text, text_mask, image_mask = tokens(6, 0)
    text_mask[3:, -1] = False
    alone = run(objective(), (image, text, text_mask, image_mask))
    halves = [result["filip"] for result in two_processes]
    assert sum(half["shorter"]["loss"] for half in halves) / 2 == pytest.approx(alone["loss"], abs=1e-5)
    for name, whole in alone["parameters"].items():
        both = [torch.tensor(half["shorter"]["parameters"][name]) for half in halves]
        torch.testing.assert_close(sum(both) / 2, torch.tensor(whole), atol=1e-5, rtol=1e-4)


def test_processes_refuse_together(two_processes):
    for result in two_processes:
        assert "is False everywhere in sample 5" in result["filip"]["all_padding"]
        assert "text_tokens holds NaN" in result["filip"]["poisoned"]
        assert "image_tokens holds NaN" in result["filip"]["poisoned_image"]
