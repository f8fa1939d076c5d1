import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from foveal.pretrain.uniter import (
    TASK_WEIGHTS,
    UNITER,
    UNITERConfig,
    UNITERForPretraining,
    UNITERObjective,
    ipot,
    itm_loss,
    mask_regions,
    mask_tokens,
    mlm_loss,
    mrc_kl_loss,
    mrc_loss,
    mrfr_loss,
    region_position_features,
    replace_images,
    sample_region_mask,
    wra_distance,
    wra_loss,
)

from .uniter_inputs import NAMES, TINY, inputs, model

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/uniter.npz").items()}
TIED = {"cls.predictions.decoder.weight", "feat_regress.weight"}


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within the specification's 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def batch(rows=4, seed=0, **changes):
    return {**dict(zip(NAMES, inputs(rows, seed), strict=True)), **changes}


# Golden ---------------------------------------------------------------------------------------------------------------


def test_golden_transport():
    ref = golden("ot")
    beta, iterations, inner = ref["params"].tolist()
    options = {"beta": beta, "iterations": int(iterations), "inner": int(inner)}
    masks = ref["text_mask"], ref["image_mask"]
    plan = ipot(ref["cost"], *masks, **options)
    close(plan, ref["plan"])
    text = ref["text_hidden"].clone().requires_grad_()
    distance = wra_distance(text, ref["image_hidden"], *masks, **options)
    close(distance, ref["distance"])
    close(wra_distance(text, ref["image_hidden"], *masks), ref["distance"])  # the defaults are the paper's
    distance.sum().backward()
    close(text.grad, ref["grad_text"])
    close(wra_loss(distance, ref["is_match"]), ref["wra_loss"])


def test_golden_masks():
    ref = golden("mask")
    options = {"uniform": ref["uniform"], "random_ids": ref["random_ids"], "mask_prob": float(ref["mask_prob"])}
    before = ref["input_ids"].clone()
    masked, labels = mask_tokens(ref["input_ids"], ref["maskable"], int(ref["mask_id"]), **options)
    assert torch.equal(masked, ref["masked_ids"])
    assert torch.equal(labels, ref["labels"])
    assert torch.equal(ref["input_ids"], before)
    regions = sample_region_mask(ref["region_mask"], uniform=ref["region_uniform"], mask_prob=float(ref["mask_prob"]))
    assert torch.equal(regions, ref["masked_regions"])


@pytest.fixture(scope="module")
def released():
    """The golden model, with the official names of its weights."""
    ref = golden("model")
    weights = {k.removeprefix("weights."): v.float() for k, v in ref.items() if k.startswith("weights.")}
    tiny = UNITERForPretraining(UNITERConfig(**json.loads(bytes(ref["config"].numpy())))).eval()
    assert tiny.state_dict().keys() == weights.keys() | TIED
    assert set(tiny.load_state_dict(weights, strict=False).missing_keys) == TIED
    return tiny


def test_golden_model(released):
    ref = golden("model")
    close(region_position_features(ref["boxes"], ref["image_sizes"]), ref["region_positions"])
    names = "input_ids", "text_mask", "region_features", "region_positions", "region_mask"
    hidden, pooled = released.uniter(*(ref[name] for name in names))
    close(hidden * ref["valid"][..., None], ref["hidden"])
    close(pooled, ref["pooled"])
    scores = released.forward_mlm(ref)
    close(scores[ref["labels"] != -100], ref["mlm_scores"])
    close(mlm_loss(scores, ref["labels"]), ref["mlm_loss"])
    prediction, target = released.forward_mrfr(ref), ref["region_features"][ref["masked_regions"]]
    close(prediction, ref["mrfr_pred"])
    close(mrfr_loss(prediction, target), ref["mrfr_mean"])
    close(mrfr_loss(prediction, target, reduction="sum"), ref["mrfr_sum"])
    logits, probabilities = released.forward_mrc(ref), ref["detector_probs"][ref["masked_regions"]]
    close(logits, ref["mrc_logits"])
    close(mrc_loss(logits, probabilities), ref["mrc_loss"])
    close(mrc_kl_loss(logits, probabilities), ref["mrc_kl_mean"])
    close(mrc_kl_loss(logits, probabilities, reduction="sum"), ref["mrc_kl_sum"])
    matching, distances = released.forward_itm(ref)
    close(matching, ref["itm_logits"])
    close(distances, ref["distances"])
    close(itm_loss(matching, targets=ref["targets"]), ref["itm_loss"])


def test_golden_objective(released):
    ref = golden("model")
    mean, total = UNITERObjective(released), UNITERObjective(released, mrm_reduction="sum")
    for task, name in (("mlm", "mlm_loss"), ("mrfr", "mrfr_mean"), ("mrc", "mrc_loss"), ("mrc_kl", "mrc_kl_mean")):
        out = mean(task, ref)
        close(out.loss, ref[name])
        part = out.mlm if task == "mlm" else out.mrm
        assert part is out.loss
        assert out.itm is out.wra is out.distances is None
    close(total("mrfr", ref).loss, ref["mrfr_sum"])
    close(total("mrc_kl", ref).loss, ref["mrc_kl_sum"])
    out = mean("itm", ref)
    close(out.loss, ref["itm_total"])
    close(out.itm, ref["itm_loss"])
    close(out.wra, ref["wra_loss"])
    close(out.distances, ref["distances"])
    assert out.mlm is out.mrm is None
    close(UNITERObjective(released, wra_weight=0.0)("itm", ref).loss, ref["itm_loss"])


# Masking --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(0, 1))
def test_masking_against_a_slow_loop(seed, probability):
    rng = torch.Generator().manual_seed(seed)
    ids, uniform = torch.randint(5, 50, (3, 6), generator=rng), torch.rand(3, 6, generator=rng, dtype=torch.double)
    maskable, words = torch.rand(3, 6, generator=rng) < 0.6, torch.randint(5, 50, (3, 6), generator=rng)
    maskable[:, 2] = True
    masked, labels = mask_tokens(ids, maskable, 1, uniform=uniform, random_ids=words, mask_prob=probability)
    for row in range(3):
        drawn = [i for i in range(6) if maskable[row, i] and uniform[row, i] < probability]
        first = next(i for i in range(6) if maskable[row, i])
        for i in range(6):
            share = float(uniform[row, i]) / probability if i in drawn else None
            if share is not None:
                expected = 1 if share < 0.8 else words[row, i] if share < 0.9 else ids[row, i]
            else:
                expected = 1 if not drawn and i == first else ids[row, i]
            assert masked[row, i] == expected
            assert labels[row, i] == (ids[row, i] if i in drawn or (not drawn and i == first) else -100)


def test_masks_draw_at_their_rate():
    rng = torch.Generator().manual_seed(0)
    everything = torch.ones(200, 50, dtype=torch.bool)
    regions = sample_region_mask(everything, uniform=torch.rand(200, 50, generator=rng))
    assert float(regions.double().mean()) == pytest.approx(0.15, abs=0.02)
    one = sample_region_mask(everything[:, :3], uniform=torch.tensor([[0.9, 0.5, 0.7]]).expand(200, 3))
    assert torch.equal(one, torch.tensor([False, True, False]).expand(200, 3))


def test_masked_regions_become_zero_in_a_copy():
    features, masked = torch.ones(1, 2, 3), torch.tensor([[True, False]])
    assert mask_regions(features, masked)[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert bool((features == 1).all())


# Invariants -----------------------------------------------------------------------------------------------------------


def hidden_states(given, **options):
    names = "input_ids", "text_mask", "region_features", "region_positions", "region_mask"
    return model().uniter(*(given[name] for name in names), **options)


def test_regions_have_no_order():
    given, order = batch(), torch.tensor([3, 0, 4, 1, 2])
    moved = {name: value[:, order] if name.startswith("region") else value for name, value in given.items()}
    (hidden, pooled), (again, same) = hidden_states(given), hidden_states(moved)
    torch.testing.assert_close(again[:, 7:], hidden[:, 7:][:, order])
    torch.testing.assert_close(again[:, :7], hidden[:, :7])
    torch.testing.assert_close(same, pooled)


@pytest.mark.parametrize("content", [9.0, float("nan")])
def test_padding_reaches_nothing(content):
    given = batch()
    hidden, pooled = hidden_states(given)
    for name in ("region_features", "region_positions"):
        given[name] = given[name].masked_fill(~given["region_mask"][..., None], content)
    given["input_ids"] = given["input_ids"].masked_fill(~given["text_mask"], 13)
    again, same = hidden_states(given)
    valid = torch.cat([given["text_mask"], given["region_mask"]], 1)
    assert torch.equal(again[valid], hidden[valid])
    assert torch.equal(same, pooled)
    objective = UNITERObjective(model())
    assert bool(objective("itm", given).loss.isfinite())


def test_batch_equals_singles():
    given = batch()
    hidden, pooled = hidden_states(given)
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        alone["input_ids"], alone["text_mask"] = alone["input_ids"][:, :6], alone["text_mask"][:, :6]
        kept = alone["region_mask"][0]
        for name in ("region_features", "region_positions", "region_mask"):
            alone[name] = alone[name][:, kept]
        one, own = hidden_states(alone)
        torch.testing.assert_close(one[0], hidden[row][torch.cat([given["text_mask"][row], given["region_mask"][row]])])
        torch.testing.assert_close(own[0], pooled[row])


def test_masked_content_reaches_no_prediction():
    """Conditional masking: the feature of a masked region is gone, the target is the original feature."""
    tiny, given = model(), batch()
    other = batch(region_features=given["region_features"] + 3 * given["masked_regions"][..., None])
    assert torch.equal(tiny.forward_mrfr(given), tiny.forward_mrfr(other))
    assert torch.equal(tiny.forward_mrc(given), tiny.forward_mrc(other))
    assert not torch.equal(tiny.forward_mlm(given), tiny.forward_mlm(other))  # there no region is masked
    objective = UNITERObjective(tiny)
    assert objective("mrfr", given).loss != objective("mrfr", other).loss
    moved = batch(region_positions=given["region_positions"] + 0.5)  # its place stays visible
    assert not torch.allclose(tiny.forward_mrfr(given), tiny.forward_mrfr(moved))
    without = {name: value for name, value in given.items() if name != "masked_regions"}
    assert torch.equal(tiny.forward_mlm(given), tiny.forward_mlm(without))
    assert torch.equal(tiny.forward_itm(given)[0], tiny.forward_itm(without)[0])


def test_word_scores_are_those_of_forward_mlm():
    tiny, given = model(), batch()
    wanted = given["labels"] != -100
    torch.testing.assert_close(tiny.word_scores(given, wanted), tiny.forward_mlm(given)[wanted])


def test_equal_sets_are_close():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert float(wra_distance(x, x, mask, mask, beta=0.01).max()) < 1e-4
    assert float(wra_distance(x, -x, mask, mask).min()) > 0.5


def test_alignment_loss_has_both_signs():
    distance = torch.tensor([0.4, 0.4, 0.1, 0.1], requires_grad=True)
    loss = wra_loss(distance, torch.tensor([True, False, True, False]))
    assert loss.item() == 0
    loss.backward()
    assert distance.grad.tolist() == [0.25, -0.25, 0.25, -0.25]
    assert wra_loss(distance, torch.tensor([True, True, True, False])).item() == pytest.approx(
        (0.4 + 0.4 + 0.1 - 0.1) / 4
    )


def test_background_is_never_a_target():
    probabilities = torch.tensor([[0.9, 0.02, 0.08]])
    logits = torch.tensor([[5.0, 1.0, 2.0]])
    torch.testing.assert_close(mrc_loss(logits, probabilities), F.cross_entropy(logits, torch.tensor([2])))


def test_kl_with_zeros_and_its_direction():
    probabilities, logits = torch.tensor([[0.0, 0.25, 0.75]]), torch.tensor([[0.5, -1.0, 2.0]])
    q = logits.softmax(-1)
    expected = 0.25 * (0.25 / q[0, 1]).log() + 0.75 * (0.75 / q[0, 2]).log()
    torch.testing.assert_close(mrc_kl_loss(logits, probabilities, reduction="sum"), expected)
    torch.testing.assert_close(mrc_kl_loss(logits, probabilities), expected / 3)


def test_outputs_share_the_inputs_weights():
    tiny = model()
    assert tiny.cls["predictions"].decoder.weight is tiny.uniter.embeddings.word_embeddings.weight
    assert tiny.feat_regress.weight is tiny.uniter.img_embeddings.img_linear.weight


def test_mask_vector_starts_with_a_zero_row():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vectors = UNITER(TINY).img_embeddings.mask_embedding.weight
    assert not vectors[0].any()
    assert vectors[1].all()


def test_it_starts_from_bert():
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 8}
    bert, own = BertModel(BertConfig(**sizes)).eval(), UNITER(TINY).eval()
    before = own.img_embeddings.img_linear.weight.clone()
    own.load_bert(bert)
    ids = torch.randint(1, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    hidden = own.encoder(own.embeddings(ids)).last_hidden_state
    expected = bert(ids)
    torch.testing.assert_close(hidden, expected.last_hidden_state)
    torch.testing.assert_close(own.pooler(hidden), expected.pooler_output)
    assert torch.equal(own.img_embeddings.img_linear.weight, before)
    with pytest.raises(ValueError, match=r"encoder\.layer\.1.*missing"):
        own.load_bert(BertModel(BertConfig(**{**sizes, "num_hidden_layers": 1})))
    with pytest.raises(ValueError, match=r"word_embeddings.*21"):
        own.load_bert(BertModel(BertConfig(**{**sizes, "vocab_size": 21})))


def test_replaced_images_are_other_images():
    given = batch(200, region_features=torch.arange(200.0)[:, None, None].expand(200, 5, 6))
    ids = torch.arange(200) // 2
    out = replace_images(given, generator=torch.Generator().manual_seed(0), image_ids=ids)
    source = out["region_features"][:, 0, 0].long()
    assert torch.equal(out["targets"] == 1, source == torch.arange(200))
    assert bool((ids[source] != ids)[out["targets"] == 0].all())
    assert torch.equal(out["region_positions"], given["region_positions"][source])
    assert torch.equal(out["region_mask"], given["region_mask"][source])
    assert float(out["targets"].double().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(out["input_ids"], given["input_ids"])
    again = replace_images(given, generator=torch.Generator().manual_seed(0), image_ids=ids)
    assert torch.equal(again["targets"], out["targets"])
    alone = replace_images(batch(1), generator=torch.Generator().manual_seed(0), prob=1.0)
    assert alone["targets"].tolist() == [1]  # there is no other image
    with pytest.raises(ValueError, match="image_ids"):
        replace_images(given, generator=torch.Generator(), image_ids=ids[:3])
    with pytest.raises(ValueError, match=r"prob=1\.5"):
        replace_images(given, generator=torch.Generator(), prob=1.5)


def test_training_lowers_every_loss():
    objective, given = UNITERObjective(model()), batch(8)
    optimiser = torch.optim.AdamW(objective.parameters(), 3e-3)
    first, last = {}, {}
    for step in range(25):
        for task in TASK_WEIGHTS:
            out = objective(task, given)
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
            (first if step == 0 else last)[task] = out.loss.item()
    assert all(last[task] < first[task] for task in TASK_WEIGHTS)


def test_saved_weights_come_back(tmp_path):
    from safetensors.torch import load_model, save_model

    tiny, other = model(), UNITERForPretraining(TINY).eval()
    save_model(tiny, tmp_path / "uniter.safetensors")
    load_model(other, tmp_path / "uniter.safetensors")
    torch.testing.assert_close(other.forward_mlm(batch()), tiny.forward_mlm(batch()))


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"boxes": torch.ones(2, 3, 5)}, r"boxes \(2, 3, 5\)"),
        ({"image_sizes": torch.ones(3, 2)}, r"image_sizes \(3, 2\)"),
        ({"boxes": torch.tensor([[[4.0, 0.0, 3.0, 1.0]]]).expand(2, 3, 4)}, r"\[4\.0, 0\.0, 3\.0, 1\.0\].*x1 <= x2"),
        ({"boxes": torch.tensor([[[0.0, 2.0, 3.0, 1.0]]]).expand(2, 3, 4)}, "y1 <= y2"),
        ({"boxes": torch.full((2, 3, 4), float("nan"))}, "finite"),
        ({"image_sizes": torch.zeros(2, 2)}, "positive"),
    ],
)
def test_bad_boxes(change, match):
    with pytest.raises(ValueError, match=match):
        region_position_features(**{"boxes": torch.ones(2, 3, 4), "image_sizes": torch.ones(2, 2), **change})


def test_bad_masking():
    ids, maskable = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    options = {"uniform": torch.rand(2, 3), "random_ids": ids}
    with pytest.raises(ValueError, match="maskable has a row without a word"):
        mask_tokens(ids, maskable & torch.tensor([[True], [False]]), 1, **options)
    with pytest.raises(ValueError, match=r"uniform \(2, 2\)"):
        mask_tokens(ids, maskable, 1, **{**options, "uniform": torch.rand(2, 2)})
    with pytest.raises(ValueError, match=r"mask_prob=1\.2"):
        mask_tokens(ids, maskable, 1, **options, mask_prob=1.2)
    with pytest.raises(ValueError, match="region_mask has a row"):
        sample_region_mask(torch.zeros(2, 3, dtype=torch.bool), uniform=torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"region_mask \(2, 3\)"):
        sample_region_mask(maskable, uniform=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"mask_prob=-0\.1"):
        sample_region_mask(maskable, uniform=torch.rand(2, 3), mask_prob=-0.1)
    with pytest.raises(ValueError, match="masked"):
        mask_regions(torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))


def test_bad_losses():
    two, labels = torch.ones(2, 3), torch.full((2, 4), -100)
    with pytest.raises(ValueError, match="labels are all -100"):
        mlm_loss(torch.ones(2, 4, 5), labels)
    with pytest.raises(ValueError, match=r"labels \(2, 4\)"):
        mlm_loss(torch.ones(2, 3, 5), labels)
    for loss in (mrfr_loss, mrc_kl_loss):
        with pytest.raises(ValueError, match="reduction='max'"):
            loss(two, two, reduction="max")
    for loss in (mrfr_loss, mrc_kl_loss, mrc_loss):
        with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
            loss(two, torch.ones(2, 4))
        with pytest.raises(ValueError, match="at least one"):
            loss(two[:0], two[:0])
    with pytest.raises(ValueError, match=r"targets.* hold 2"):
        itm_loss(torch.ones(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="targets"):
        itm_loss(two, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="is_match"):
        wra_loss(torch.ones(2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="image_mask"):
        wra_distance(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(2, 2))
    hidden, bad = torch.ones(2, 3, 4), torch.full((2, 3, 4), float("nan"))
    for name, pair in (("text_hidden", (bad, hidden)), ("image_hidden", (hidden, bad))):
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            wra_distance(*pair, torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"text_mask": torch.zeros(4, 7, dtype=torch.bool)}, "text_mask hides the first place"),
        ({"region_mask": torch.zeros(4, 5, dtype=torch.bool)}, "region_mask has a row"),
        ({"input_ids": torch.ones(4, 9, dtype=torch.long)}, "max_position_embeddings=8"),
        ({"region_features": torch.ones(4, 5, 7)}, r"region_features \(4, 5, 7\)"),
        ({"region_positions": torch.ones(4, 5, 6)}, r"region_positions \(4, 5, 6\)"),
        ({"region_mask": torch.ones(3, 5, dtype=torch.bool)}, "region_mask"),
    ],
)
def test_bad_batches(change, match):
    with pytest.raises(ValueError, match=match):
        UNITERObjective(model())("itm", batch(**change))


def test_bad_masked_regions_and_tasks():
    objective = UNITERObjective(model())
    with pytest.raises(ValueError, match="masked_regions marks padding"):
        objective("mrfr", batch(masked_regions=torch.ones(4, 5, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"masked_regions \(4, 4\)"):
        objective("mrfr", batch(masked_regions=torch.ones(4, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"task='vqa'.*mlm, mrfr, mrc, mrc_kl, itm"):
        objective("vqa", batch())
    with pytest.raises(ValueError, match=r"no 'detector_probs'.*task='mrc'"):
        objective("mrc", {name: value for name, value in batch().items() if name != "detector_probs"})
    for shape in ((4, 4, 5), (4, 5, 6), (4, 5)):
        with pytest.raises(ValueError, match=rf"detector_probs \({', '.join(map(str, shape))}\).*\(4, 5, 5\)"):
            objective("mrc_kl", batch(detector_probs=torch.ones(shape)))
    with pytest.raises(ValueError, match="mrm_reduction='max'"):
        UNITERObjective(model(), mrm_reduction="max")
    with pytest.raises(ValueError, match="labels"):
        objective("mlm", batch(labels=torch.ones(4, 6, dtype=torch.long)))


@pytest.mark.parametrize("task", ["mlm", "mrfr", "itm"])
def test_a_task_looks_at_its_own_inputs_alone(task):
    objective, needed = UNITERObjective(model()), {"mlm": "labels", "mrfr": "masked_regions", "itm": "targets"}[task]
    other = dict.fromkeys({"labels", "masked_regions", "targets"} - {needed})
    given = batch(**other, detector_probs=torch.full((4, 5, 5), float("nan")), captions=["a cat"] * 4)
    assert torch.equal(objective(task, given).loss, objective(task, batch()).loss)
    with pytest.raises(ValueError, match=f"no '{needed}'.*task='{task}'"):
        objective(task, batch(**{needed: None}))
    spoilt = batch()["region_features"].clone()
    spoilt[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="region_features holds NaN"):
        objective(task, batch(region_features=spoilt, **other))


@pytest.mark.parametrize("task", ["mlm", "mrfr", "mrc", "mrc_kl", "itm"])
def test_processes_refuse_together(task, two_processes):
    """The bad region is on the second process, and the other one never sees it."""
    assert "another process holds NaN" in two_processes[0]["uniter"][task]
    assert "region_features holds NaN" in two_processes[1]["uniter"][task]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
        ({"img_label_dim": 1}, "img_label_dim=1"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_bad_configuration(change, match):
    with pytest.raises(ValueError, match=match):
        UNITERConfig(**change)
