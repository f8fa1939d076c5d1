import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.record import Sample
from foveal.pretrain.clip import LogitScale, clip_loss
from foveal.pretrain.dreamlip import (
    Captions,
    DreamLIPObjective,
    group_patches,
    grouping_loss,
    multi_positive_loss,
    recaption,
    sample_subcaptions,
    share_repeated,
    split_caption,
)

from .dreamlip_inputs import batch_negatives, features, objective
from .measure import run

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/dreamlip.npz").items()}


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within the specification's 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# Golden ---------------------------------------------------------------------------------------------------------------


def test_golden_multi_positive():
    ref = golden("multi_positive")
    leaves = [ref[f"{side}_features"].clone().requires_grad_() for side in ("image", "text")]
    out = multi_positive_loss(*leaves, float(ref["scale"]))
    for name in ("loss", "image_to_text", "text_to_image"):
        close(getattr(out, name), ref[name])
    out.loss.backward()
    close(leaves[0].grad, ref["grad_image"])
    close(leaves[1].grad, ref["grad_text"])


@pytest.mark.parametrize("negatives", ["image", "batch"])
def test_golden_grouping(negatives):
    ref = golden("grouping")
    threshold = None if ref["threshold"] < 0 else float(ref["threshold"])
    options = {"threshold": threshold, "norm": json.loads(bytes(ref["norm"].numpy()))}
    leaves = [ref[f"{side}_features"].clone().requires_grad_() for side in ("text", "patch")]
    grouped, weights = group_patches(*leaves, **options)
    close(grouped, ref["grouped"])
    close(weights, ref["weights"])
    out = grouping_loss(*leaves, float(ref["scale"]), **options, negatives=negatives)
    for name in ("loss", "text_to_patch", "patch_to_text"):
        close(getattr(out, name), ref[f"{negatives}.{name}"])
    close(out.grouped, ref["grouped"])
    close(out.weights, ref["weights"])
    out.loss.backward()
    close(leaves[0].grad, ref[f"{negatives}.grad_text"])
    close(leaves[1].grad, ref[f"{negatives}.grad_patch"])


# Several positives ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_is_the_mean_of_clip_over_the_texts(batch, texts, seed):
    image, text = random(batch, 6, seed=seed), random(batch, texts, 6, seed=seed + 1)
    out, slots = multi_positive_loss(image, text, 5.0), [clip_loss(image, text[:, k], 5.0) for k in range(texts)]
    for name in ("loss", "image_to_text", "text_to_image"):
        torch.testing.assert_close(getattr(out, name), torch.stack([getattr(slot, name) for slot in slots]).mean())


def test_other_texts_of_an_image_are_no_negatives():
    image, text = random(4, 6), random(4, 3, 6, seed=1)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        multi_positive_loss(image, text[:, order], 5.0).loss, multi_positive_loss(image, text, 5.0).loss
    )
    same = text[:, :1].expand(-1, 3, -1)  # if they were, equal texts would raise the loss
    torch.testing.assert_close(multi_positive_loss(image, same, 5.0).loss, clip_loss(image, text[:, 0], 5.0).loss)
    mixed = text.clone()
    mixed[0] = mixed[0, order]  # slots must stay apart: this changes who is whose negative
    assert abs(float(multi_positive_loss(image, mixed, 5.0).loss - multi_positive_loss(image, text, 5.0).loss)) > 1e-4


# Grouping -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.sampled_from([None, 0.0, 0.1, 0.3, 0.9]),
    st.sampled_from(["minmax", "softmax"]), st.integers(0, 99),
)  # fmt: skip
def test_grouping_against_a_slow_loop(batch, texts, patches, threshold, norm, seed):
    text, patch = random(batch, texts, 5, seed=seed), random(batch, patches, 5, seed=seed + 1)
    grouped, weights = group_patches(text, patch, threshold=threshold, norm=norm)
    for b in range(batch):
        rows = F.normalize(patch[b], dim=-1)
        for k in range(texts):
            cosines = (rows @ F.normalize(text[b, k], dim=-1)).tolist()
            if norm == "softmax":
                likeness = [math.exp(c) / sum(map(math.exp, cosines)) for c in cosines]
            else:
                low, high = min(cosines), max(cosines)
                likeness = [(c - low) / (high - low + 1e-10) for c in cosines]
            kept = [value if value >= (1 / patches if threshold is None else threshold) else 0.0 for value in likeness]
            expected = [value / sum(kept) for value in kept] if sum(kept) else [1 / patches] * patches
            if threshold is not None or norm == "minmax":  # at 1/N the softmax of one or two patches sits on the edge
                assert weights[b, k].tolist() == pytest.approx(expected, abs=1e-9)
                torch.testing.assert_close(grouped[b, k], F.normalize(torch.tensor(expected).double() @ rows, dim=-1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, texts).double())
    torch.testing.assert_close(grouped.norm(dim=-1), torch.ones(batch, texts).double())


def test_weights():
    text, patch = random(3, 4, 6), random(3, 9, 6, seed=1)
    _, weights = group_patches(text, patch)
    assert (weights >= 0).all()
    assert (weights == 0).any(-1).all()  # the least similar patch of each text
    assert ((group_patches(text, patch, threshold=0.0)[1] > 0).sum(-1) == 8).all()
    assert (group_patches(text, patch, threshold=0.999)[1].amax(-1) == 1).all()
    alone, of_one = group_patches(text[1:2], patch[1:2])
    torch.testing.assert_close(of_one[0], weights[1])  # other images and texts do not matter
    assert alone.shape == (1, 4, 6)


@pytest.mark.parametrize("norm", ["minmax", "softmax"])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_are_shared_out(norm, threshold, dtype):
    """Patches that are alike, but for the last digits of their cosines."""
    patch = (random(2, 1, 7).expand(-1, 5, -1) * torch.tensor([1.0, 3.0, 0.7, 11.0, 0.1]).view(1, 5, 1)).to(dtype)
    text = random(2, 3, 7, seed=1).to(dtype).requires_grad_()
    patch = patch.clone().requires_grad_()
    grouped, weights = group_patches(text, patch, threshold=threshold, norm=norm)
    if norm == "minmax":
        torch.testing.assert_close(weights, torch.full((2, 3, 5), 0.2, dtype=dtype))
    for negatives in ("image", "batch"):
        loss = grouping_loss(text, patch, 10.0, threshold=threshold, norm=norm, negatives=negatives).loss
        assert loss.isfinite()
        assert all(g.isfinite().all() and g.abs().max() < 100 for g in torch.autograd.grad(loss, (text, patch)))
    assert grouped.isfinite().all()


def test_one_image_is_a_batch():
    text, patch = random(1, 4, 6), random(1, 9, 6, seed=1)
    left, right = (grouping_loss(text, patch, 5.0, negatives=negatives) for negatives in ("image", "batch"))
    torch.testing.assert_close(left.text_to_patch, right.text_to_patch)
    torch.testing.assert_close(left.patch_to_text, right.patch_to_text)


def test_batch_negatives_are_clip_over_all_texts():
    text, patch = random(3, 4, 6), random(3, 9, 6, seed=1)
    out = grouping_loss(text, patch, 5.0, negatives="batch")
    clip = clip_loss(out.grouped.flatten(0, 1), text.flatten(0, 1), 5.0)
    torch.testing.assert_close(out.patch_to_text, clip.image_to_text)
    torch.testing.assert_close(out.text_to_patch, clip.text_to_image)


def test_gradient_flows_through_the_weights():
    text, patch = random(2, 3, 5).requires_grad_(), random(2, 4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, p: grouping_loss(t, p, 3.0, threshold=0.0).loss, (text, patch))
    assert torch.autograd.gradcheck(lambda t, p: grouping_loss(t, p, 3.0, negatives="batch").loss, (text, patch))


# Captions -------------------------------------------------------------------------------------------------------------


def test_splitting():
    assert split_caption("A dog.  It runs\nfast.</s>The sky is blue </s> . \n") == [
        "A dog",
        "It runs",
        "fast",
        "The sky is blue",
    ]
    assert split_caption(" .\n</s>") == []
    assert split_caption("no end") == ["no end"]


def test_sampling_without_repetition():
    rng = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(["raw", "short", "a", "b", "c"], 0)
    for _ in range(600):
        drawn = sample_subcaptions("raw", ["short"], "a. b. c.", 3, rng)
        assert drawn[0] == "raw"
        assert len(set(drawn)) == 3
        for text in drawn:
            counts[text] += 1
    assert counts["raw"] == 600
    assert all(240 <= counts[text] <= 360 for text in ("short", "a", "b", "c"))  # 300 expected, the last piece too
    anything = [sample_subcaptions("raw", ["short"], "a. b. c.", 2, rng, always_raw=False) for _ in range(600)]
    assert all(len(set(drawn)) == 2 for drawn in anything)
    assert all(190 <= sum(text in drawn for drawn in anything) <= 290 for text in counts)  # 240 expected
    assert sum(drawn[0] == "raw" for drawn in anything) < 200


def test_sampling_more_than_there_is():
    rng = torch.Generator().manual_seed(0)
    drawn = sample_subcaptions("raw", [], "a. b.", 6, rng)
    assert len(drawn) == 6
    assert drawn[0] == "raw"
    assert set(drawn[1:]) <= {"a", "b"}
    assert sample_subcaptions("raw", [], "", 1, rng) == ["raw"]
    assert sample_subcaptions("raw", ["", " "], "a.", 2, rng) == ["raw", "a"]
    assert share_repeated([["a", "b"], ["a", "a"]]) == 0.25
    assert share_repeated([]) == 0.0


def test_sampling_follows_its_generator():
    draws = [
        [sample_subcaptions("raw", ["s"], "a. b. c. d.", 4, rng) for _ in range(5)]
        for rng in (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(drawn) for drawn in draws[0]}) > 1  # fresh at every step


def test_short_captions_may_be_a_tuple():
    drawn = [
        sample_subcaptions("raw", kind(["s"]), "a. b", 3, torch.Generator().manual_seed(0)) for kind in (list, tuple)
    ]
    assert drawn[0] == drawn[1]
    assert Captions("raw", ("s",), "a. b").sample(3, torch.Generator().manual_seed(0)) == drawn[0]


def test_bad_sampling():
    rng = torch.Generator()
    for arguments, match in (
        (("raw", ["s"], "a.", 0), "k=0"),
        (("raw", [], " . ", 2), "hold no text"),
        (("raw", "short", "a.", 2), "must be a list"),
        ((" ", ["s"], "a.", 2), "is blank"),
    ):
        with pytest.raises(ValueError, match=match):
            sample_subcaptions(*arguments, rng)
    with pytest.raises(ValueError, match="hold no text"):
        sample_subcaptions("", [], "", 1, rng, always_raw=False)


class Scripted:
    def __init__(self, short, long):
        self.short, self.long, self.asked = short, long, []

    def answer(self, image, question):
        self.asked.append(question)
        return self.short if "short" in question else self.long


def test_recaption_joins_what_the_models_say():
    picture = np.zeros((4, 4, 3), np.uint8)
    samples = [Sample("a", (picture,), ("raw a",)), Sample("b", (picture,), ("raw b",))]
    talker, silent = Scripted("A dog. ", "A dog. It sits."), Scripted("", " \n")
    found = list(recaption(samples, talker, [silent, Scripted("A dog.", "Grass")]))
    assert found[0] == Captions("raw a", ("A dog.",), "A dog. It sits.\nGrass")
    assert len(talker.asked) == 4
    rng = torch.Generator().manual_seed(0)
    assert set(found[1].sample(5, rng)) == {"raw b", "A dog.", "A dog", "It sits", "Grass"}
    with pytest.raises(ValueError, match="has no caption"):
        list(recaption([Sample("c", (picture,))], talker))


# Objective ------------------------------------------------------------------------------------------------------------


def test_objective_is_the_weighted_sum():
    image, patch, text = features(4, 0)
    for model in (objective(), batch_negatives()):
        assert set(model.state_dict()) == {
            "logit_scale.log_scale",
            "local_logit_scale.log_scale",
            "patch_projection.weight",
        }
        model.local_logit_scale.log_scale.data.fill_(1.0)
        out = model(image, patch, text)
        several = multi_positive_loss(image, text, model.logit_scale())
        options = {"threshold": model.threshold, "negatives": model.negatives}
        group = grouping_loss(text, model.patch_projection(patch), math.e, **options)
        torch.testing.assert_close(out.multi_positive, several.loss)
        torch.testing.assert_close(out.grouping, group.loss)
        torch.testing.assert_close(out.weights, group.weights)
        torch.testing.assert_close(out.loss, model.mpcl_weight * several.loss + model.grouping_weight * group.loss)
    assert (batch_negatives().mpcl_weight, batch_negatives().grouping_weight) == (0.7, 1.3)


def test_without_projection():
    image, _, text = features(4, 0)
    patch = random(4, 6, 8).float()
    model = DreamLIPObjective(norm="softmax", threshold=None)
    assert set(model.state_dict()) == {"logit_scale.log_scale", "local_logit_scale.log_scale"}
    group = grouping_loss(text, patch, model.local_logit_scale(), threshold=None, norm="softmax")
    torch.testing.assert_close(model(image, patch, text).grouping, group.loss)
    assert isinstance(model.local_logit_scale, LogitScale)
    for scale in (model.logit_scale, model.local_logit_scale):
        scale.log_scale.data.fill_(9.0)
    assert model.clamp_() is None
    assert [scale().item() for scale in (model.logit_scale, model.local_logit_scale)] == pytest.approx([100, 100])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"patch_dim": 4}, "patch_dim=4 needs embed_dim"),
        ({"norm": "max"}, "norm='max'"),
        ({"negatives": "all"}, "negatives='all'"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"init_scale": 0.0}, "init=0.0"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        DreamLIPObjective(**options)
    if options.keys() & {"norm", "threshold"}:
        with pytest.raises(ValueError, match=match):
            group_patches(random(2, 3, 4), random(2, 5, 4), **options)
    if options.keys() & {"norm", "threshold", "negatives"}:
        with pytest.raises(ValueError, match=match):
            grouping_loss(random(2, 3, 4), random(2, 5, 4), 1.0, **options)


def test_bad_arguments():
    image, text, patch = random(2, 4), random(2, 3, 4), random(2, 5, 4)
    for bad in (random(3, 4), random(2, 5), random(2, 1, 4), random(0, 4)):
        with pytest.raises(ValueError, match="image_features"):
            multi_positive_loss(bad, text, 1.0)
    for bad in (random(3, 5, 4), random(2, 5, 5), random(2, 4), random(2, 0, 4)):
        with pytest.raises(ValueError, match="patch_features"):
            grouping_loss(text, bad, 1.0)
        with pytest.raises(ValueError, match="patch_features"):
            group_patches(text, bad)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"scale={scale}"):
            multi_positive_loss(image, text, scale)
        with pytest.raises(ValueError, match=f"scale={scale}"):
            grouping_loss(text, patch, scale)
    with pytest.raises(ValueError, match="image_features holds NaN"):
        multi_positive_loss(image * math.nan, text, 1.0)
    with pytest.raises(ValueError, match="patch_features holds NaN"):
        group_patches(text, patch * math.inf)


def test_two_processes_with_batch_negatives(two_processes):
    alone = run(batch_negatives(), features(6, 0))
    halves = [result["dreamlip"]["batch"] for result in two_processes]
    assert sum(half["loss"] for half in halves) / 2 == pytest.approx(alone["loss"], abs=1e-5)
    for name, whole in alone["parameters"].items():
        both = [torch.tensor(half["parameters"][name]) for half in halves]
        torch.testing.assert_close(sum(both) / 2, torch.tensor(whole), atol=1e-5, rtol=1e-4)


def test_processes_refuse_together(two_processes):
    """The bad patch is on the second process, and the other one never sees patches of it."""
    assert "another process holds NaN" in two_processes[0]["dreamlip"]["poisoned"]
    assert "patch_features holds NaN" in two_processes[1]["dreamlip"]["poisoned"]


def test_on_transformers_clip():
    """A training step of the real class: pooled features, patch states less the class token, K texts for each image."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 28, "eos_token_id": 29, "pad_token_id": 0}
    text = {**size, "vocab_size": 30, "max_position_embeddings": 8, **ends}
    vision = {**size, "hidden_size": 24, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        head = DreamLIPObjective(patch_dim=24, embed_dim=12)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[[28, 3, 29], [28, 4, 29]], [[28, 5, 29], [28, 6, 29]]])
    seen = model.vision_model(pixels)
    image = model.visual_projection(seen.pooler_output)
    texts = model.get_text_features(ids.flatten(0, 1)).pooler_output.unflatten(0, (2, 2))
    out = head(image, seen.last_hidden_state[:, 1:], texts)
    out.loss.backward()
    head.clamp_()
    assert out.weights.shape == (2, 2, 4)
    used = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in used)
