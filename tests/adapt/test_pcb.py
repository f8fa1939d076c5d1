from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.adapt import pcb
from foveal.nn.cosine import unit_rows

torch.set_num_threads(1)
GOLDEN = np.load(Path(__file__).parents[1] / "golden/pcb.npz")
SEEDS = st.integers(0, 1000)


def golden(case):
    arrays = {key.removeprefix(f"{case}__"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}__")}
    return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in arrays.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# Acquisition ----------------------------------------------------------------------------------------------------------


def test_golden_entropy():
    case = golden("entropy")
    torch.testing.assert_close(pcb.entropy_scores(case["probs"]), case["expected"], rtol=1e-6, atol=1e-9)
    assert torch.equal(pcb.candidate_pool("entropy", 5, probs=case["probs"]), case["top5"])


def test_golden_coreset():
    case = golden("coreset")
    assert torch.equal(pcb.kcenter_greedy(case["labeled"], case["unlabeled"], case["n"]), case["expected"])
    asked = {"features": 7 * case["unlabeled"], "labeled_features": case["labeled"]}
    assert torch.equal(pcb.candidate_pool("coreset", case["n"], **asked), case["expected"])


def test_golden_badge():
    case = golden("badge")
    embeddings = pcb.badge_embeddings(case["probs"], case["features"])
    torch.testing.assert_close(embeddings, case["embeddings"], rtol=1e-6, atol=1e-7)
    chosen = pcb.kmeanspp_select(embeddings, case["n"], uniforms=case["uniforms"])
    assert torch.equal(chosen, case["expected"])


@pytest.mark.parametrize("missing", pcb.MISSING)
def test_golden_balance(missing):
    case = golden("balance")
    before = case["pseudo_labels"].clone(), case["label_counts"].clone(), case["priority"].clone()
    chosen = pcb.pseudo_class_balance(
        case["pseudo_labels"], case["label_counts"], case["n_query"], priority=case["priority"], missing=missing
    )
    assert torch.equal(chosen, case[f"expected_{missing}"])
    after = case["pseudo_labels"], case["label_counts"], case["priority"]
    assert all(map(torch.equal, before, after)), "inputs were modified"


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 12), m=st.integers(1, 4), seed=SEEDS)
def test_coreset_takes_the_farthest_each_time(n, m, seed):
    labeled, pool = draw(m, 3, seed=seed), draw(n, 3, seed=seed + 1)
    centres = list(labeled)
    for i in pcb.kcenter_greedy(labeled, pool, n).tolist():
        distances = torch.stack([torch.linalg.vector_norm(pool - centre, dim=1) for centre in centres]).amin(0)
        assert distances[i] == pytest.approx(distances.max().item())
        centres.append(pool[i])


def test_coreset_survives_duplicates():
    same = torch.ones(6, 2)
    assert pcb.kcenter_greedy(same[:1], same, 6).tolist() == [0, 1, 2, 3, 4, 5]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 15), seed=SEEDS)
def test_badge_of_the_pool_equals_badge_of_its_embeddings(n, seed):
    probs, features = draw(15, 4, seed=seed).softmax(1), draw(15, 5, seed=seed + 1)
    probs[3], features[3] = probs[7].clone(), features[7].clone()  # a duplicate
    found = pcb.candidate_pool("badge", n, probs=probs, features=features, generator=generator(seed))
    wanted = pcb.kmeanspp_select(pcb.badge_embeddings(probs, features), n, generator=generator(seed))
    assert torch.equal(found, wanted)
    assert len(set(found.tolist())) == n


def test_badge_embedding_is_the_gradient_of_the_last_layer():
    weight, features = draw(3, 4).requires_grad_(), draw(6, 4, seed=1)
    logits = features @ weight.T
    for row, embedding in enumerate(pcb.badge_embeddings(logits.softmax(1).detach(), features)):
        loss = torch.nn.functional.cross_entropy(logits[row : row + 1], logits[row : row + 1].argmax(1))
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(embedding, -gradient.flatten())


def test_kmeanspp_draws_with_squared_distances():
    rows = torch.tensor([[10.0], [9.0], [7.0]])  # squared distances to the longest: 0, 1, 9; plain ones: 0, 1, 3
    assert pcb.kmeanspp_select(rows, 2, uniforms=torch.tensor([0.0999])).tolist() == [0, 1]
    assert pcb.kmeanspp_select(rows, 2, uniforms=torch.tensor([0.1001])).tolist() == [0, 2]
    assert pcb.kmeanspp_select(rows, 3, uniforms=torch.tensor([0.5, 0.999999])).tolist() == [0, 2, 1]


def test_kmeanspp_survives_duplicates():
    assert pcb.kmeanspp_select(torch.ones(5, 3), 5, generator=generator()).tolist() == [0, 1, 2, 3, 4]
    rows = torch.tensor([[1.0], [1.0], [3.0], [3.0]])
    assert pcb.kmeanspp_select(rows, 4, uniforms=torch.tensor([0.9, 0.9, 0.9]))[0] == 2
    assert sorted(pcb.kmeanspp_select(rows, 4, generator=generator()).tolist()) == [0, 1, 2, 3]


def test_random_candidates_are_the_whole_pool():
    assert pcb.candidate_pool("random", 2, probs=torch.ones(5, 2)).tolist() == [0, 1, 2, 3, 4]
    assert pcb.candidate_pool("entropy", 9, probs=torch.eye(3)).tolist() == [0, 1, 2]  # ties keep their order


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pcb.entropy_scores(torch.ones(3)), "probs"),
        (lambda: pcb.entropy_scores(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda: pcb.kcenter_greedy(torch.ones(0, 2), torch.ones(3, 2), 1), "labeled"),
        (lambda: pcb.kcenter_greedy(torch.ones(1, 2), torch.ones(3, 2), 4), "n=4"),
        (lambda: pcb.kmeanspp_select(torch.ones(3, 2), 4), "n=4"),
        (lambda: pcb.kmeanspp_select(torch.ones(3, 2), 3, uniforms=torch.ones(2)), "uniforms"),
        (lambda: pcb.kmeanspp_select(torch.ones(3, 2), 3, uniforms=torch.zeros(3)), "uniforms"),
        (lambda: pcb.badge_embeddings(torch.ones(3, 2), torch.ones(2, 2)), "features"),
        (lambda: pcb.candidate_pool("margin", 1, probs=torch.ones(3, 2)), "margin"),
        (lambda: pcb.candidate_pool("badge", 1, probs=torch.ones(3, 2)), "features"),
        (lambda: pcb.candidate_pool("random", 1), "probs or features"),
        (lambda: pcb.candidate_pool("random", 0, probs=torch.ones(3, 2)), "n_cand=0"),
    ],
)
def test_acquisition_refuses(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# Balance --------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(classes=st.integers(1, 5), seed=SEEDS, shift=st.integers(0, 9), missing=st.sampled_from(pcb.MISSING))
def test_perfect_guesses_level_the_counts(classes, seed, shift, missing):
    counts = torch.randint(0, 4, (classes,), generator=generator(seed))
    labels = torch.arange(classes).repeat(8)[torch.randperm(8 * classes, generator=generator(seed + 1))]
    n = int((counts.max() - counts).sum()) + classes  # enough to level
    chosen = pcb.pseudo_class_balance(labels, counts, n, generator=generator(seed), missing=missing)
    after = counts + torch.bincount(labels[chosen], minlength=classes)
    assert after.max() - after.min() <= 1
    shifted = pcb.pseudo_class_balance(labels, counts + shift, n, generator=generator(seed), missing=missing)
    assert torch.equal(chosen, shifted)


@settings(max_examples=50, deadline=None)
@given(guesses=st.lists(st.integers(0, 3), max_size=12), seed=SEEDS, missing=st.sampled_from(pcb.MISSING))
def test_asking_for_all_gives_a_permutation(guesses, seed, missing):
    pseudo = torch.tensor(guesses, dtype=torch.int64)
    chosen = pcb.pseudo_class_balance(
        pseudo, torch.tensor([0, 3, 1, 2]), len(pseudo), generator=generator(seed), missing=missing
    )
    assert chosen.dtype == torch.int64
    assert sorted(chosen.tolist()) == list(range(len(pseudo)))


@settings(max_examples=50, deadline=None)
@given(guesses=st.lists(st.integers(0, 3), min_size=1, max_size=14), seed=SEEDS, missing=st.sampled_from(pcb.MISSING))
def test_balance_equals_a_slow_reading_of_the_rule(guesses, seed, missing):
    pseudo, start = torch.tensor(guesses), torch.randint(0, 3, (4,), generator=generator(seed))
    priority = torch.randperm(len(pseudo), generator=generator(seed + 1))
    n = 1 + seed % len(pseudo)
    counts, expected = start.tolist(), []
    for _ in range(n):
        rarest = min(range(4), key=lambda k: (counts[k], k))
        free = [i for i in range(len(pseudo)) if i not in expected]
        fitting = [i for i in free if pseudo[i] == rarest]
        expected.append(min(fitting or free, key=lambda i: priority[i].item()))
        counts[rarest] += bool(fitting) or missing == "advance"
    found = pcb.pseudo_class_balance(pseudo, start, n, priority=priority, missing=missing)
    assert found.tolist() == expected


def test_a_missing_class_takes_the_round_only_in_the_official_rule():
    pseudo, priority = torch.tensor([1, 1, 1, 2, 2, 2]), torch.arange(6)
    found = {
        rule: pseudo[pcb.pseudo_class_balance(pseudo, torch.zeros(3), 3, priority=priority, missing=rule)].tolist()
        for rule in pcb.MISSING
    }
    assert found == {"official": [1, 1, 1], "advance": [1, 1, 2]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_query": 5}, "n_query=5"),
        ({"n_query": -1}, "n_query=-1"),
        ({"missing": "random"}, "missing='random'"),
        ({"priority": torch.tensor([0, 1, 1, 3])}, "permutation"),
        ({"priority": torch.arange(3)}, "permutation"),
        ({"pseudo_labels": torch.tensor([0, 1, 2, 0])}, "pseudo_labels"),
        ({"pseudo_labels": torch.tensor([0, 1, -1, 0])}, "pseudo_labels"),
    ],
)
def test_balance_refuses(change, says):
    fine = {"pseudo_labels": torch.tensor([0, 1, 1, 0]), "label_counts": torch.tensor([0, 0]), "n_query": 2}
    with pytest.raises(ValueError, match=says):
        pcb.pseudo_class_balance(**{**fine, **change})


# The loop -------------------------------------------------------------------------------------------------------------


class Nearest:
    """Nearest mean of the classes seen; what it was fitted on is kept."""

    def fit(self, x, y):
        self.x, self.y = x, y
        self.means = torch.stack(
            [x[y == k].mean(0) if bool((y == k).any()) else x.new_full(x.shape[1:], 9) for k in range(4)]
        )
        return self

    def predict_proba(self, x):
        return (-torch.cdist(x, self.means)).softmax(1)

    def features(self, x):
        return unit_rows(x)


def pool(n=80):
    """Four clusters, the first of them with more than half of all points."""
    labels = torch.multinomial(torch.tensor([0.6, 0.2, 0.1, 0.1]), n, replacement=True, generator=generator(5))
    centres = torch.tensor([[3.0, 0], [0, 3.0], [-3.0, 0], [0, -3.0]])
    return (centres[labels] + 0.3 * torch.randn(n, 2, generator=generator(6))), labels


def run(seed=0, **options):
    x, labels = pool()
    asked = []

    def oracle(indices):
        asked.extend(indices.tolist())
        return labels[indices]

    options = {"num_classes": 4, "rounds": 4, "generator": generator(seed), **options}
    return pcb.active_prompt_learning(Nearest, x, oracle, **options), asked, labels


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("method", pcb.METHODS)
def test_loop_buys_each_label_once_and_starts_anew(method, balance):
    result, asked, labels = run(method=method, balance=balance)
    assert [len(indices) for indices in result.selected] == [4] * 4
    assert asked == torch.cat(result.selected).tolist()
    assert len(set(asked)) == 16
    for selected, bought in zip(result.selected, result.labels, strict=True):
        assert torch.equal(labels[selected], bought)
    assert len({id(model) for model in result.models}) == 4
    for round, model in enumerate(result.models, 1):
        assert torch.equal(model.y, torch.cat(result.labels[:round]))
    again, _, _ = run(method=method, balance=balance)
    assert all(map(torch.equal, result.selected, again.selected))


@pytest.mark.parametrize("method", pcb.METHODS)
def test_all_arms_share_the_first_round(method):
    plain, balanced = run(method=method, balance=False)[0], run(method=method)[0]
    assert torch.equal(plain.selected[0], balanced.selected[0])
    assert torch.equal(plain.selected[0], run(method="random")[0].selected[0])


@pytest.mark.parametrize("method", pcb.METHODS)
def test_guesses_that_are_right_level_all_labels_of_the_loop(method):
    _, labels = pool(400)
    index = torch.arange(400)[:, None]

    class Knows:
        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return torch.nn.functional.one_hot(labels[x[:, 0]], 4) * 0.9 + 0.025

        def features(self, x):
            return unit_rows(torch.cat([torch.ones(len(x), 1), x / 400], 1))

    options = {"num_classes": 4, "rounds": 6, "n_query": 8, "method": method, "gamma": 0.5}
    found = {
        balance: pcb.active_prompt_learning(
            Knows, index, lambda i: labels[i], balance=balance, generator=generator(), **options
        )
        for balance in (False, True)
    }
    counts = {balance: torch.bincount(torch.cat(result.labels)) for balance, result in found.items()}
    assert counts[True].max() - counts[True].min() <= 1
    assert counts[False].max() - counts[False].min() > 5


def test_candidates_are_a_share_of_the_whole_set(monkeypatch):
    sizes = []
    real = pcb.candidate_pool
    monkeypatch.setattr(
        pcb, "candidate_pool", lambda m, n, **k: (sizes.append((n, len(k["probs"]))), real(m, n, **k))[1]
    )
    run(method="entropy", gamma=0.1)
    assert sizes == [(8, 76), (8, 72), (8, 68)]  # of 80, not of what is left
    sizes.clear()
    run(method="entropy", gamma=0.01)
    assert [n for n, _ in sizes] == [4, 4, 4]  # at least as many as are asked


@pytest.mark.parametrize("method", pcb.METHODS)
def test_a_share_of_nothing_or_of_more_than_there_is(method):
    found = {gamma: run(method=method, gamma=gamma)[0].selected for gamma in (0, 0.05, 1.0, 1.5, torch.inf)}
    assert all(map(torch.equal, found[0], found[0.05]))  # as many candidates as are asked
    assert all(map(torch.equal, found[1.0], found[1.5]))
    assert all(map(torch.equal, found[1.0], found[torch.inf]))


@pytest.mark.parametrize("method", ["entropy", "coreset"])
def test_the_latest_model_and_all_labels_say_what_is_wanted(method):
    result, _, _ = run(method=method, balance=False)
    x, _ = pool()
    for round in (1, 2, 3):
        known = torch.cat(result.selected[:round])
        free = torch.tensor([i for i in range(80) if i not in known.tolist()])
        if method == "entropy":
            uncertain = pcb.entropy_scores(result.models[round - 1].predict_proba(x[free]))
            wanted = uncertain.argsort(descending=True, stable=True)[:4]
        else:
            wanted = pcb.kcenter_greedy(unit_rows(x[known]), unit_rows(x[free]), 4)
        assert result.selected[round].tolist() == free[wanted].tolist()


def test_the_loop_hands_on_what_to_do_about_a_missing_class():
    """No picture is of class 3: to advance leaves more labels to the other rare classes than to take any."""
    labels = torch.multinomial(torch.tensor([0.9, 0.05, 0.05, 0.0]), 200, replacement=True, generator=generator(5))

    class Knows(Nearest):
        def predict_proba(self, x):
            return torch.nn.functional.one_hot(labels[x[:, 0].long()], 4).float()

    found = {}
    for missing in ("official", "advance"):
        options = {"num_classes": 4, "rounds": 3, "method": "random", "missing": missing, "generator": generator()}
        x = torch.arange(200.0)[:, None]
        result = pcb.active_prompt_learning(Knows, x, labels.__getitem__, **options)
        found[missing] = int((torch.cat(result.labels) > 0).sum())
    assert found["advance"] > found["official"]


def test_plain_random_is_random():
    result, asked, _ = run(method="random", balance=False)
    free = [i for i in range(80) if i not in asked[:4]]
    assert result.selected[1].tolist() != free[:4]


def test_an_exhausted_pool_ends_the_loop():
    x, labels = pool(10)
    for method in pcb.METHODS:
        result = pcb.active_prompt_learning(
            Nearest, x, lambda i: labels[i], num_classes=4, method=method, generator=generator()
        )
        assert [len(indices) for indices in result.selected] == [4, 4, 2]
        assert sorted(torch.cat(result.selected).tolist()) == list(range(10))


def test_arrays_and_lists_of_labels_do_as_well():
    x, labels = pool()

    class OnArrays(Nearest):
        def fit(self, x, y):
            assert isinstance(x, np.ndarray)
            return super().fit(torch.from_numpy(x), y)

        def predict_proba(self, x):
            return super().predict_proba(torch.from_numpy(x)).numpy()

        def features(self, x):
            return super().features(torch.from_numpy(x)).numpy()

    options = {"num_classes": 4, "rounds": 4, "method": "coreset"}
    mine = pcb.active_prompt_learning(
        OnArrays, x.numpy(), lambda i: labels[i].tolist(), generator=generator(), **options
    )
    theirs = pcb.active_prompt_learning(Nearest, x, lambda i: labels[i], generator=generator(), **options)
    assert all(map(torch.equal, mine.selected, theirs.selected))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "margin"}, "margin"),
        ({"missing": "skip"}, "missing"),
        ({"rounds": 0}, "rounds=0"),
        ({"n_query": 0}, "n_query=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"gamma": -0.1}, "gamma=-0.1"),
        ({"gamma": torch.nan}, "gamma=nan"),
        ({"num_classes": 2}, "classes are 0 to 1"),
    ],
)
def test_loop_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        run(**change)


def test_loop_refuses_an_oracle_that_gives_too_few():
    x, labels = pool()
    with pytest.raises(ValueError, match="oracle gave"):
        pcb.active_prompt_learning(Nearest, x, lambda i: labels[i][:-1], num_classes=4)
