import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from foveal.pretrain.nevlp import (
    ConceptIndex,
    ConceptQFormer,
    NevlpObjective,
    NoiseEstimator,
    VisualPrefix,
    build_attention_mask,
    citg_labels,
    concept_text,
    fit_noise_gmm,
    hard_negatives,
    itc_per_sample,
    itg_loss,
    itm_loss,
    noise_adaptive_itc,
    prefix_lm_loss,
    query_text_similarity,
    retrieve_concepts,
)

from .nevlp_inputs import Objective, bridge, inputs

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/nevlp.npz").items()}
MODES = ("mixture", "label_smoothing")


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual.detach().double(), expected.double(), atol=tolerance, rtol=tolerance)


def scores(batch=5, seed=0):
    return torch.rand(batch, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 2 - 1


def noise(batch=5, seed=1):
    return torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


# Golden ---------------------------------------------------------------------------------------------------------------


def test_golden_mixture():
    ref = golden("gmm")
    found = fit_noise_gmm(ref["losses"], int(ref["num_iter"]), float(ref["reg"]))
    for name in ("means", "variances", "weights", "noise_prob"):
        close(getattr(found, name), ref[name])


@pytest.mark.parametrize("mode", MODES)
def test_golden_nitc(mode):
    ref, expected = golden("nitc"), golden(f"nitc_{mode}")
    sim = ref["sim"].clone().requires_grad_()
    out = noise_adaptive_itc(sim, ref["noise_prob"], float(ref["temperature"]), float(ref["lam"]), mode)
    close(out.loss, expected["loss"])
    close(out.per_sample, expected["per_sample"])
    out.loss.backward()
    close(sim.grad, expected["grad"])
    close(itc_per_sample(sim, float(ref["temperature"])), ref["itc"])


@pytest.mark.parametrize("task", ["nitc", "citg", "citm"])
def test_golden_masks(task):
    ref = golden("mask")
    mask = build_attention_mask(task, int(ref["num_queries"]), ref["concept_mask"], ref["text_mask"])
    assert torch.equal(mask, ref[task])


# Noise ----------------------------------------------------------------------------------------------------------------


def two_groups(seed=0):
    rng = torch.Generator().manual_seed(seed)
    low, high = 0.5 + 0.2 * torch.randn(60, generator=rng), 3 + 0.5 * torch.randn(40, generator=rng)
    return torch.cat([low, high])


def test_mixture_equals_scikit_learn():
    losses = two_groups().double()
    scaled = ((losses - losses.min()) / (losses.max() - losses.min())).numpy()[:, None]
    start = np.full((2, 1, 1), 1 / scaled.var())
    peer = GaussianMixture(
        2,
        means_init=[[0.0], [1.0]],
        weights_init=[0.5, 0.5],
        precisions_init=start,
        reg_covar=1e-4,
        max_iter=500,
        tol=1e-12,
    ).fit(scaled)
    found = fit_noise_gmm(losses, 500, 1e-4)
    close(found.means, peer.means_[:, 0], 1e-4)
    close(found.weights, peer.weights_, 1e-4)
    close(found.noise_prob, peer.predict_proba(scaled)[:, 1], 1e-3)


@pytest.mark.parametrize(("rounds", "reg"), [(3, 0.01), (3, 0.0), (0, 0.01)])
def test_mixture_against_a_slow_loop(rounds, reg):
    losses = two_groups()[:20].double()
    x = [(v - float(losses.min())) / float(losses.max() - losses.min()) for v in losses.tolist()]
    mean = sum(x) / len(x)
    means, weights = [0.0, 1.0], [0.5, 0.5]
    variances = [sum((v - mean) ** 2 for v in x) / len(x)] * 2

    def shares():
        rows = []
        for v in x:
            density = [
                weights[k] * math.exp(-((v - means[k]) ** 2) / (2 * variances[k])) / math.sqrt(variances[k])
                for k in range(2)
            ]
            rows.append([d / sum(density) for d in density])
        return rows

    for _ in range(rounds):
        rows = shares()
        for k in range(2):
            mass = sum(row[k] for row in rows)
            means[k] = sum(row[k] * v for row, v in zip(rows, x, strict=True)) / mass
            variances[k] = sum(row[k] * (v - means[k]) ** 2 for row, v in zip(rows, x, strict=True)) / mass + reg
            weights[k] = mass / len(x)
    found = fit_noise_gmm(losses, rounds, reg)
    close(found.means, means)
    close(found.variances, variances)
    close(found.noise_prob, [row[1] for row in shares()])


def test_noise_grows_with_the_loss():
    losses = two_groups()
    found = fit_noise_gmm(losses)
    assert bool((found.noise_prob[:60] < 0.1).all())
    assert bool((found.noise_prob[60:] > 0.9).all())
    assert found.noise_prob.requires_grad is False
    close(fit_noise_gmm(5 + 3 * losses).noise_prob, found.noise_prob)  # scale and offset of the loss do not matter


def test_equal_losses_are_no_noise():
    assert not fit_noise_gmm(torch.full((7,), 2.5)).noise_prob.any()
    assert bool(fit_noise_gmm(torch.tensor([0.0, 1.0])).noise_prob.isfinite().all())
    for dtype in (torch.float32, torch.float64):  # equal but for rounding: 100 pairs that no one could mix up
        assert not fit_noise_gmm(itc_per_sample(torch.eye(100, dtype=dtype))).noise_prob.any()
    close(fit_noise_gmm(1 + 1e-3 * two_groups()).noise_prob, fit_noise_gmm(two_groups()).noise_prob, 1e-2)


def test_without_regularisation_nothing_divides_by_zero():
    assert fit_noise_gmm(torch.tensor([2, 2, 2, 5, 5]), reg=0.0).noise_prob.tolist() == [0, 0, 0, 1, 1]


def test_estimator_keeps_what_it_has_not_seen():
    estimator, losses = NoiseEstimator(110), two_groups()
    everything = torch.arange(110)
    assert not estimator(everything).any()  # warm-up
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    for part in order.split(16):
        estimator.record(part, losses[part])
    found = estimator.refresh()
    close(estimator(everything[:100]), found.noise_prob)
    close(found.noise_prob, fit_noise_gmm(losses).noise_prob)
    assert not estimator(everything[100:]).any()
    copy = NoiseEstimator(110)
    copy.load_state_dict(estimator.state_dict())
    assert torch.equal(copy(everything), estimator(everything))
    with pytest.raises(ValueError, match="losses"):
        estimator.refresh()  # nothing recorded since
    with pytest.raises(ValueError, match=r"index \(3,\)"):
        estimator.record(torch.arange(3), torch.ones(2))
    with pytest.raises(ValueError, match="size=1"):
        NoiseEstimator(1)


def test_two_processes_fit_one_mixture(two_processes):
    """Each has seen half of the pairs; the first was also given one of the second's, as samplers do to fill up."""
    losses = two_groups()
    for result in two_processes:
        found = torch.tensor(result["nevlp"]["noise"])
        close(found[:100], fit_noise_gmm(losses).noise_prob)
        assert not found[100:].any()


# Contrast -------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.floats(0.05, 1), st.floats(0, 1), st.sampled_from(MODES), st.integers(0, 1000))
def test_nitc_against_a_slow_loop(batch, temperature, lam, mode, seed):
    sim, prob = scores(batch, seed), noise(batch, seed)

    def direction(s, i):
        total = sum(math.exp(float(s[i, j]) / temperature) for j in range(batch))
        p = [math.exp(float(s[i, j]) / temperature) / total for j in range(batch)]
        omega, others = lam * float(prob[i]), [p[j] for j in range(batch) if j != i]
        if mode == "mixture":
            return -math.log((1 - omega) * p[i] + omega / (batch - 1) * sum(others))
        return -(1 - omega) * math.log(p[i]) - omega / (batch - 1) * sum(map(math.log, others))

    out = noise_adaptive_itc(sim, prob, temperature, lam, mode)
    expected = [(direction(sim, i) + direction(sim.mT, i)) / 2 for i in range(batch)]
    close(out.per_sample, torch.tensor(expected, dtype=torch.double), 1e-8)
    close(out.loss, np.mean(expected), 1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_no_noise_is_plain_contrast(mode):
    sim, plain = scores(), itc_per_sample(scores())
    own = torch.arange(5)
    close(plain.mean(), (F.cross_entropy(sim / 0.07, own) + F.cross_entropy(sim.mT / 0.07, own)) / 2)
    close(noise_adaptive_itc(sim, torch.zeros(5), mode=mode).per_sample, plain)
    close(noise_adaptive_itc(sim, noise(), lam=0.0, mode=mode).per_sample, plain)
    assert not torch.allclose(noise_adaptive_itc(sim, noise(), mode=mode).per_sample, plain)
    soft = noise_adaptive_itc(sim, noise(), mode=mode)
    close(noise_adaptive_itc(sim.mT, noise(), mode=mode).per_sample, soft.per_sample)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_at_the_ends(mode, value):
    """ω of exactly 0 or 1, and scores so far apart that their probabilities vanish."""
    sim, prob = scores().float().requires_grad_(), torch.full((5,), value, requires_grad=True)
    out = noise_adaptive_itc(sim, prob, temperature=0.005, lam=1.0, mode=mode)
    out.loss.backward()
    assert out.loss.isfinite()
    assert sim.grad.isfinite().all()
    assert prob.grad.isfinite().all()


def test_a_noisy_pair_pulls_less():
    sim = torch.zeros(3, 3, requires_grad=True)
    noise_adaptive_itc(sim, torch.tensor([0.0, 0.0, 1.0])).loss.backward()
    pulls = -sim.grad.diagonal()
    assert pulls[2] < pulls[0] - 1e-3
    assert sim.grad[2, 0] != 0  # it stays a negative of the others


def test_similarity_takes_the_best_query():
    query = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    text = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    close(query_text_similarity(query, text), torch.tensor([[1.0, 0.5**0.5], [0.0, 0.5**0.5]]))


# Concepts, negatives, labels ------------------------------------------------------------------------------------------


def test_concepts():
    vectors = torch.eye(4)
    index, score = retrieve_concepts(torch.tensor([[0.1, 5.0, 0.0, 3.0], [1.0, 0.0, 0.5, 0.0]]), vectors, 2)
    assert index.tolist() == [[1, 3], [0, 2]]
    assert bool((score[:, 0] > score[:, 1]).all())
    assert concept_text(["cat", "mat"], "it sits") == "cat, mat. it sits"
    assert concept_text([], "it sits") == "it sits"
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k={k}"):
            retrieve_concepts(torch.ones(2, 4), vectors, k)
    with pytest.raises(ValueError, match="concepts"):
        retrieve_concepts(torch.ones(2, 3), vectors, 1)


def test_autocast_keeps_close_concepts_apart():
    rng = torch.Generator().manual_seed(0)
    image, concepts = torch.randn(4, 64, generator=rng), 1 + 0.02 * torch.randn(200, 64, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = retrieve_concepts(image, concepts, 5)
    for mine, plain in zip(found, retrieve_concepts(image, concepts, 5), strict=True):
        assert torch.equal(mine, plain)


def test_hard_negatives_follow_the_softmax():
    sim = torch.tensor([[9.0, 1.0, 0.0], [0.0, 9.0, 2.0], [1.0, 1.0, 9.0]])
    rng = torch.Generator().manual_seed(0)
    draws = [hard_negatives(sim, rng, 0.5) for _ in range(2000)]
    texts, images = (torch.stack(side) for side in zip(*draws, strict=True))
    assert bool((texts != torch.arange(3)).all() and (images != torch.arange(3)).all())
    p = 1 / (1 + math.exp(-2))  # texts 1 and 2 for image 0: scores 1 and 0 over 0.5
    assert float((texts[:, 0] == 1).double().mean()) == pytest.approx(p, abs=0.03)
    p = 1 / (1 + math.exp(-2))  # images 2 and 1 for text 0
    assert float((images[:, 0] == 2).double().mean()) == pytest.approx(p, abs=0.03)
    again = [hard_negatives(sim, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(again[0][0], again[1][0])
    with pytest.raises(ValueError, match="two"):
        hard_negatives(torch.ones(1, 1), rng)


def test_labels_are_the_words_of_the_text():
    concepts, text = torch.tensor([[8, 9]]), torch.tensor([[1, 5, 6, 0]])
    mask = torch.tensor([[True, True, True, False]])
    labels = citg_labels(concepts, text, mask)
    assert labels.tolist() == [[-100, -100, -100, 5, 6, -100]]
    assert mask.all() == False  # noqa: E712
    logits = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits[0, 2:4], torch.tensor([5, 6]))
    close(itg_loss(logits, labels), expected)


def test_matching_averages_the_scores():
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 0])
    close(itm_loss(logits=logits, labels=labels), F.cross_entropy(logits.mean(1), labels))


# Bridge ---------------------------------------------------------------------------------------------------------------


def test_who_sees_whom():
    """Change one part of the input, and see which outputs notice."""
    tiny = bridge().eval()
    features, _, ids, _, concepts, _ = inputs(2, 0)
    full = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        words = tiny.words(features, ids, full[0], concepts, full[1])
        later = ids.clone()
        later[:, 4] = (ids[:, 4] + 5) % 20
        changed = tiny.words(features, later, full[0], concepts, full[1])
        assert torch.equal(changed[:, : 3 + 4], words[:, : 3 + 4])  # concepts and earlier words do not see it
        assert not torch.allclose(changed[:, 3 + 4 :], words[:, 3 + 4 :])
        assert not torch.allclose(tiny.words(features, ids, full[0], concepts + 1, full[1])[:, 3:], words[:, 3:])
        assert not torch.allclose(tiny.words(features + 1, ids, full[0], concepts, full[1]), words)
        query, text = tiny.contrast(features, ids, full[0])
        again, other = tiny.contrast(features, later, full[0])
        assert torch.equal(again, query)
        assert not torch.allclose(other, text)
        assert torch.equal(tiny.contrast(features + 1, ids, full[0])[1], text)
        matching = tiny.match(features, ids, full[0], concepts, full[1])
        assert not torch.allclose(tiny.match(features, later, full[0], concepts, full[1]), matching)
        assert not torch.allclose(tiny.match(features, ids, full[0], concepts + 1, full[1]), matching)


def test_contrast_is_the_joint_pass_under_its_mask():
    tiny = bridge().eval()
    features, _, ids, mask, _, _ = inputs(3, 0)
    with torch.no_grad():
        query, text = tiny.contrast(features, ids, mask)
        joint = build_attention_mask("nitc", 3, mask[:, :0], mask)
        hidden = tiny(features, ids, None, joint)
        close(tiny.vision_projection(hidden[:, :3]), query)
        close(tiny.text_projection(hidden[:, 3]), text)


def test_more_padding_changes_nothing():
    tiny = bridge().eval()
    features, _, ids, mask, concepts, concept_mask = inputs(2, 0)
    with torch.no_grad():
        plain = tiny.match(features, ids, mask, concepts, concept_mask)
        wide = F.pad(concepts, (0, 2), value=3), F.pad(concept_mask, (0, 2))
        close(tiny.match(features, F.pad(ids, (0, 1)), F.pad(mask, (0, 1)), *wide), plain)
        scores = tiny.words(features, ids, mask, concepts, concept_mask)
        close(tiny.words(features, ids, mask, *wide)[:, 5:][mask], scores[:, 3:][mask])


def test_mask_invariants():
    concept_mask, text_mask = torch.tensor([[True, False]]), torch.tensor([[True, True, True]])
    citm = build_attention_mask("citm", 2, concept_mask, text_mask)
    assert torch.equal(citm, citm.mT)
    citg = build_attention_mask("citg", 2, concept_mask, text_mask)
    assert torch.equal(citg[0, 4:, 4:], torch.ones(3, 3).tril().bool())
    with pytest.raises(ValueError, match="task='itc'"):
        build_attention_mask("itc", 2, concept_mask, text_mask)
    with pytest.raises(ValueError, match=r"text_mask \(2, 3\)"):
        build_attention_mask("citm", 2, concept_mask, text_mask.expand(2, 3))
    with pytest.raises(ValueError, match="num_queries=0"):
        build_attention_mask("citm", 0, concept_mask, text_mask)


def test_bad_bridges():
    with pytest.raises(ValueError, match="heads=5"):
        ConceptQFormer(16, heads=5)
    with pytest.raises(ValueError, match="cross_every=0"):
        ConceptQFormer(16, heads=2, cross_every=0)
    with pytest.raises(ValueError, match="at most 12"):
        bridge().contrast(torch.ones(1, 4, 6), torch.ones(1, 13, dtype=torch.long), torch.ones(1, 13))


# Objective ------------------------------------------------------------------------------------------------------------


def test_it_is_the_sum_of_its_parts():
    features, prob, ids, mask, concepts, concept_mask = inputs(4, 0)
    objective = Objective()
    out = objective(features, prob, ids, mask, concepts, concept_mask)
    close(out.loss, out.nitc + out.citm + out.citg)
    query, text = objective.bridge.contrast(features, ids, mask)
    sim = query_text_similarity(query, text)
    close(out.nitc, noise_adaptive_itc(sim, prob).loss)
    close(out.per_sample_itc, itc_per_sample(sim))  # of the plain loss, whatever the noise
    assert not out.per_sample_itc.requires_grad
    words = objective.bridge.words(features, ids, mask, concepts, concept_mask)
    close(out.citg, itg_loss(words, citg_labels(concepts, ids, mask)))


def test_negatives_bring_their_own_concepts():
    features, _, ids, mask, concepts, _ = inputs(3, 0)
    objective, seen = Objective(), []
    plain = objective.bridge.match
    objective.bridge.match = lambda *given: seen.append(given) or plain(*given)
    objective(*inputs(3, 0))
    all_features, all_ids, all_mask, all_concepts, _ = seen[0]
    assert len(all_features) == 9
    assert torch.equal(all_features[:6], features.repeat(2, 1, 1))
    assert torch.equal(all_ids[6:], ids)
    for row in range(9):
        source = next(i for i in range(3) if torch.equal(all_features[row], features[i]))
        assert torch.equal(all_concepts[row], concepts[source])
        text = next(i for i in range(3) if torch.equal(all_ids[row], ids[i]))
        assert torch.equal(all_mask[row], mask[text])
        assert (source == text) == (row < 3)


def test_duplicates_are_no_negatives():
    features, prob, ids, mask, concepts, concept_mask = inputs(4, 0)
    ids, mask = ids.clone(), mask.clone()
    ids[1], mask[1] = ids[0], mask[0]
    ids[1, -1] = 13  # padding may differ
    objective, seen = Objective(), []
    plain = objective.bridge.match
    objective.bridge.match = lambda *given: seen.append(given) or plain(*given)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        NevlpObjective.forward(objective, features, ids, mask, concepts, concept_mask, prob, generator)
        wrong_texts = seen[-1][1][4:6]  # for images 0 and 1
        assert not bool((wrong_texts[:, :4] == ids[0, :4]).all(1).any())


def test_equal_texts_have_no_negatives():
    features, prob, ids, mask, concepts, concept_mask = inputs(3, 0)
    objective, seen = Objective(), []
    plain = objective.bridge.match
    objective.bridge.match = lambda *given: seen.append(given) or plain(*given)
    ids, mask = ids[:1].expand(3, -1), mask[:1].expand(3, -1)
    out = objective(features, prob, ids, mask, concepts, concept_mask)
    assert len(seen[0][0]) == 3
    close(out.citm, itm_loss(plain(features, ids, mask, concepts, concept_mask), torch.ones(3, dtype=torch.long)))


def test_processes_may_pad_differently(two_processes):
    """Texts and concepts are longer on the second process, by places of padding."""
    found = [result["nevlp"] for result in two_processes]
    for result in found:
        assert result["padded"]["loss"] == pytest.approx(result["plain"]["loss"], abs=1e-5)
        for name, gradient in result["plain"]["parameters"].items():
            close(torch.tensor(result["padded"]["parameters"][name]), gradient)


def peer_vision():
    sizes = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return seeded(lambda: ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False))


def test_training_on_a_frozen_vit_with_a_concept_index():
    vocabulary = ["cat", "dog", "mat"]

    def tokenize(texts):
        ids = [[3 + ord(letter) % 16 for letter in text[:5]] for text in texts]
        return torch.tensor(ids), torch.ones(len(ids), 5, dtype=torch.bool)

    def encode_image(images):
        return images.mean((2, 3))

    index = ConceptIndex(vocabulary, torch.eye(3), encode_image, tokenize, k=2)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ids, _ = index(images)
    best = int(images[0].mean((1, 2)).argmax())
    assert ids[0, :3].tolist() == [3 + ord(letter) % 16 for letter in vocabulary[best]]
    objective = NevlpObjective(peer_vision(), bridge(), index, mode="label_smoothing").train()
    assert not objective.vision.training
    assert objective.bridge.training
    frozen = {name: value.clone() for name, value in objective.vision.state_dict().items()}
    trainable = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, 3e-3)
    _, _, texts, text_mask, _, _ = inputs(6, 0)
    losses = []
    for step in range(15):
        out = objective(images, texts, text_mask, None, None, None, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        objective.logit_scale.clamp_()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in objective.vision.state_dict().items())
    with pytest.raises(ValueError, match="k=4"):
        ConceptIndex(vocabulary, torch.eye(3), encode_image, tokenize, k=4)


def test_without_concepts_texts_are_plain():
    features, _, ids, mask, _, _ = inputs(3, 0)
    objective = NevlpObjective(nn.Identity(), bridge())
    out = objective(features, ids, mask, None, None, None, torch.Generator().manual_seed(0))
    empty = ids[:, :0], mask[:, :0]
    same = objective(features, ids, mask, *empty, torch.zeros(3), torch.Generator().manual_seed(0))
    assert torch.equal(out.loss, same.loss)


def test_bad_objectives():
    with pytest.raises(ValueError, match="mode='soft'"):
        NevlpObjective(nn.Identity(), bridge(), mode="soft")
    with pytest.raises(ValueError, match=r"lam=1\.5"):
        NevlpObjective(nn.Identity(), bridge(), lam=1.5)


# Stage 2 --------------------------------------------------------------------------------------------------------------


def test_prefix_into_a_frozen_llama():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    llama = seeded(lambda: LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20))).requires_grad_(False).eval()
    prefix, query = VisualPrefix(16, 8), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    ids, mask = torch.tensor([[1, 5, 6, 7], [1, 4, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    loss = prefix_lm_loss(llama, prefix(query), ids, mask)
    loss.backward()
    assert prefix.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in llama.parameters())
    with torch.no_grad():
        rows = []
        for row, length in enumerate((4, 2)):  # without padding, one by one
            words = llama.get_input_embeddings()(ids[row : row + 1, :length])
            logits = llama(inputs_embeds=torch.cat([prefix(query[row : row + 1]), words], 1)).logits[0]
            rows.append(F.cross_entropy(logits[2:-1], ids[row, :length], reduction="none"))
        close(loss, torch.cat(rows).mean())
    with pytest.raises(ValueError, match="prefix"):
        prefix_lm_loss(llama, torch.ones(2, 3, 9), ids, mask)
    with pytest.raises(ValueError, match="attention_mask"):
        prefix_lm_loss(llama, prefix(query), ids, mask[:, :3])
    with pytest.raises(ValueError, match="query"):
        prefix(torch.ones(2, 3, 8))


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sim": torch.ones(5, 4)}, r"sim \(5, 4\)"),
        ({"sim": torch.full((5, 5), math.nan)}, "sim holds NaN"),
        ({"noise_prob": torch.full((5,), 1.5)}, r"noise_prob holds 1\.5.*must be finite"),
        ({"noise_prob": torch.full((5,), math.nan)}, "noise_prob holds nan.*must be finite"),
        ({"noise_prob": torch.zeros(4)}, r"noise_prob \(4,\)"),
        ({"lam": -0.1}, r"lam=-0\.1"),
        ({"lam": math.nan}, "lam=nan"),
        ({"mode": "hard"}, r"mode='hard'.*mixture, label_smoothing"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
    ],
)
def test_bad_contrast(change, match):
    with pytest.raises(ValueError, match=match):
        noise_adaptive_itc(**{"sim": scores(), "noise_prob": noise(), **change})


def test_other_bad_input():
    for losses in (torch.ones(3, 2), torch.ones(1), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="losses"):
            fit_noise_gmm(losses)
    for options in ({"num_iter": -1}, {"reg": -1e-4}, {"reg": math.nan}):
        with pytest.raises(ValueError, match=next(iter(options))):
            fit_noise_gmm(torch.rand(4), **options)
    with pytest.raises(ValueError, match="query"):
        query_text_similarity(torch.ones(2, 3, 4), torch.ones(2, 5))
    with pytest.raises(ValueError, match="labels"):
        itm_loss(torch.ones(2, 3, 2), torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="a word after its start token"):
        itg_loss(torch.ones(1, 3, 5), torch.full((1, 3), -100))
    with pytest.raises(ValueError, match="labels"):
        itg_loss(torch.ones(1, 3, 5), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="text_mask"):
        citg_labels(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 4))
