import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.curate import tldr_codes
from foveal.curate.tldr import (
    KEPT,
    MISMATCHED,
    REDUNDANT,
    Choice,
    choose,
    code_features,
    combine_selection,
    kmeans,
    pca_whiten,
    reduce_dataset,
    refine_caption,
    select_every,
    select_fraction,
    top_by_score,
    vector_quantize,
)
from foveal.curate.tldr_codes import code_perplexity

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/tldr.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected):
    """Within 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Codes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_golden_quantiser(legacy):
    ref, expected = golden("vq"), golden("vq_legacy" if legacy else "vq_paper")
    z, codebook = ref["z"].clone().requires_grad_(), ref["codebook"].clone().requires_grad_()
    out = vector_quantize(z, codebook, float(ref["beta"]), legacy)
    close(out.z_q, expected["z_q"])
    assert torch.equal(out.indices, expected["indices"])
    close(out.loss, expected["loss"])
    (out.loss + (out.z_q * ref["cotangent"]).sum()).backward()
    close(z.grad, expected["grad_z"])
    close(codebook.grad, expected["grad_codebook"])


def test_quantiser():
    z, codebook = torch.randn(4, 3, 5, generator=rng()), torch.randn(7, 5, generator=rng(1)).requires_grad_()
    leaf = z.clone().requires_grad_()
    out = vector_quantize(leaf, codebook)
    torch.testing.assert_close(out.z_q, codebook[out.indices])
    assert torch.equal(out.indices, torch.cdist(z.flatten(0, 1), codebook).argmin(1).unflatten(0, (4, 3)))
    grads = torch.autograd.grad(out.z_q, [leaf, codebook], torch.ones_like(z), allow_unused=True)
    assert torch.equal(grads[0], torch.ones_like(z))
    assert grads[1] is None
    twice = torch.cat([codebook, codebook]).detach()
    assert torch.equal(vector_quantize(z, twice).indices, out.indices)  # ties: the lowest index
    assert vector_quantize(z[0, 0], codebook).indices.shape == ()
    half = vector_quantize(z.bfloat16(), codebook.detach().bfloat16())
    assert half.loss.dtype == torch.float32


WHERE = [(5, 3, 0, 0), (33, 7, 0, 0), (33, 66, 100, 0), (33, 66, 10_000, 0), (33, 66, 0, 10_000)]


@pytest.mark.parametrize(("width", "k", "offset", "apart"), WHERE)
def test_the_nearest_is_found_far_from_zero_too(width, k, offset, apart):
    """And of codes that are equal the first, which the matrix product's rounding does not respect."""
    halves = offset + apart * (torch.arange(k) % 2)[:, None]
    codebook = torch.randn(k, width, generator=rng(1)) + halves
    z = torch.cat([*(torch.randn(k, width, generator=rng(seed)) + halves for seed in (2, 3, 4)), codebook])
    gaps = torch.stack([(z.double() - code).square().sum(1) for code in codebook.double()], 1)
    expected, twice = gaps.argmin(1), torch.cat([codebook, codebook])
    assert torch.equal(vector_quantize(z, codebook).indices, expected)
    assert torch.equal(vector_quantize(z, twice).indices, expected)
    assert torch.equal(torch.cat([vector_quantize(one, twice).indices[None] for one in z]), expected)
    assert torch.equal(kmeans(z, 2 * k, init=twice, num_iter=0).labels, expected)
    inertias = [float(kmeans(z, k, init=codebook, num_iter=rounds).inertia) for rounds in range(8)]
    assert all(later <= earlier for earlier, later in pairwise(inertias))


@pytest.mark.parametrize(
    ("z", "codebook", "beta", "match"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), 0.25, r"z \(2, 3\).*codebook \(4, 5\)"),
        (torch.ones(2, 3), torch.ones(3), 0.25, r"codebook \(3,\)"),
        (torch.ones(0, 3), torch.ones(4, 3), 0.25, "not empty"),
        (torch.ones(2, 3), torch.ones(4, 3), -1.0, "beta=-1"),
        (torch.full((2, 3), math.nan), torch.ones(4, 3), 0.25, "NaN"),
        (torch.ones(2, 3), torch.full((4, 3), math.inf), 0.25, "NaN or infinity"),
        (torch.ones(2, 3), torch.tensor([[1.0] * 3, [-math.inf] * 3]), 0.25, "NaN or infinity"),
    ],
)
def test_bad_quantisers(z, codebook, beta, match):
    with pytest.raises(ValueError, match=match):
        vector_quantize(z, codebook, beta)


def test_features_of_codes():
    codes = torch.tensor([[0, 2, 2, 4], [1, 1, 1, 1]])
    assert torch.equal(code_features(codes, 5), codes.float())
    histogram = code_features(codes, 5, "histogram")
    assert histogram.tolist() == [[0.25, 0, 0.5, 0, 0.25], [0, 1, 0, 0, 0]]
    assert torch.equal(code_features(codes.flip(1), 5, "histogram"), histogram)
    assert code_perplexity(torch.arange(8), 8) == pytest.approx(8)
    assert code_perplexity(torch.zeros(8, dtype=torch.long), 8) == pytest.approx(1)
    for bad, size, kind, match in (
        (codes, 4, "index", r"hold 4.*\[0, 4\)"),
        (codes - 1, 5, "index", "hold -1"),
        (codes, 5, "mean", "kind='mean'"),
        (codes.float(), 5, "index", "float32"),
        (codes[0], 5, "index", r"indices \(4,\)"),
        (codes[:0], 5, "index", "not empty"),
    ):
        with pytest.raises(ValueError, match=match):
            code_features(bad, size, kind)


def test_golden_whitening():
    ref = golden("pca")
    white = pca_whiten(ref["x"], int(ref["dim"]))
    close(white @ white.T, ref["gram"])


def test_whitening():
    x = torch.randn(40, 6, generator=rng()) @ torch.randn(6, 6, generator=rng(1)) + 5
    torch.testing.assert_close(pca_whiten(x, 6).norm(dim=1), torch.ones(40).double())
    copied = torch.cat([x, x[:, :2]], 1)  # two axes along which nothing varies
    white = pca_whiten(copied, 8)
    assert bool(white.isfinite().all())
    torch.testing.assert_close(white @ white.T, pca_whiten(copied, 6) @ pca_whiten(copied, 6).T)
    centred = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    assert pca_whiten(centred, 2)[4].tolist() == [0, 0]
    for bad, dim, match in (
        (x, 0, r"dim=0.*\[1, 6\]"),
        (x, 7, "dim=7"),
        (x[:4], 4, r"dim=4.*\[1, 3\]"),
        (x[0], 1, r"x \(6,\)"),
        (torch.ones(5, 3), 2, "collapsed"),
        (x * math.nan, 2, "NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            pca_whiten(bad, dim)


def test_golden_kmeans(monkeypatch):
    ref = golden("km")
    init = ref["init"].clone()
    for chunk in (8192, 3):
        monkeypatch.setattr(tldr_codes, "_CHUNK", chunk)
        found = kmeans(ref["x"], 3, init=init, num_iter=int(ref["num_iter"]))
        assert torch.equal(found.labels, ref["labels"])
        close(found.centroids, ref["centroids"])
        close(found.inertia, ref["inertia"])
    assert torch.equal(init, ref["init"])


def test_kmeans():
    x = torch.cat([torch.randn(30, 3, generator=rng()) + shift for shift in (0, 10, 20)])
    inertias = [float(kmeans(x, 5, num_iter=rounds, generator=rng()).inertia) for rounds in range(8)]
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(inertias))
    found = kmeans(x, 5, generator=rng())
    assert torch.equal(found.labels, torch.cdist(x, found.centroids).argmin(1))
    assert torch.equal(found.labels, kmeans(x, 5, generator=rng()).labels)
    assert sorted(kmeans(x[:4], 4, num_iter=0, generator=rng()).labels.tolist()) == [0, 1, 2, 3]
    far = torch.tensor([[0.0, 0, 0], [99, 99, 99]])
    assert kmeans(x[:9] * 0.1, 2, init=far).centroids[1].tolist() == [99, 99, 99]  # empty: stays where it was
    for change, match in (
        ({"k": 0}, r"k=0.*\[1, 90\]"),
        ({"k": 91}, "k=91"),
        ({"k": 2}, "generator=None"),
        ({"k": 2, "init": torch.ones(3, 3)}, r"init \(3, 3\) must be \(2, 3\)"),
        ({"k": 2, "num_iter": -1, "generator": rng()}, "num_iter=-1"),
        ({"k": 2, "x": x * math.inf}, "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            kmeans(**{"x": x} | change)


# Selection ------------------------------------------------------------------------------------------------------------


def test_golden_selection():
    ref = golden("sel")
    keep = select_every(ref["labels"], int(ref["every"]))
    assert torch.equal(keep, ref["keep"])
    assert torch.equal(top_by_score(ref["scores"]), ref["top"])
    assert torch.equal(combine_selection(keep, ref["top"]), ref["final"])


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 6), st.floats(0.01, 1))
def test_every_cluster_keeps_its_share(labels, every, fraction):
    given = torch.tensor(labels, dtype=torch.long)
    regular, drawn = select_every(given, every).tolist(), select_fraction(given, fraction, rng()).tolist()
    for keep in (regular, drawn):
        assert keep == sorted(set(keep))
    for cluster in set(labels):
        members = [i for i, label in enumerate(labels) if label == cluster]
        assert [i for i in regular if labels[i] == cluster] == members[::every]
        assert len([i for i in drawn if labels[i] == cluster]) == max(1, math.floor(fraction * len(members)))


def test_fractions_are_drawn_uniformly():
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    counts = torch.zeros(8)
    for seed in range(400):
        counts[select_fraction(labels, 0.25, rng(seed))] += 1
    assert bool(((counts > 60) & (counts < 140)).all())


def test_the_better_part():
    assert top_by_score(torch.tensor([1.0, 3, 2, 3, 3])).tolist() == [False, True, False, True, False]
    assert int(top_by_score(torch.zeros(7), 0.5).sum()) == 3
    assert combine_selection(torch.tensor([3, 0]), torch.tensor([True, False, False, True])).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: select_every(torch.zeros(3), 1), "float32"),
        (lambda: select_every(torch.zeros(3, dtype=torch.long), 0), "every=0"),
        (lambda: select_every(torch.zeros(6, dtype=torch.long), 2.5), "every=2.5"),
        (lambda: select_fraction(torch.zeros(3, dtype=torch.long), 0.0, rng()), "fraction=0.0"),
        (lambda: select_fraction(torch.zeros(3, dtype=torch.long), 1.1, rng()), "fraction=1.1"),
        (lambda: top_by_score(torch.tensor([1.0, math.nan])), "NaN"),
        (lambda: top_by_score(torch.ones(3), 2.0), "fraction=2.0"),
        (lambda: top_by_score(torch.ones(3, 1)), r"scores \(3, 1\)"),
        (lambda: combine_selection(torch.tensor([5]), torch.ones(3, dtype=torch.bool)), "keep holds 5"),
        (lambda: combine_selection(torch.tensor([0]), torch.ones(3)), "booleans"),
    ],
)
def test_bad_selections(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# The whole ------------------------------------------------------------------------------------------------------------


def test_captions_are_appended():
    assert refine_caption(" a cat ", "an animal\n") == "a cat; an animal"
    assert refine_caption("a cat", " ") == "a cat"
    assert refine_caption("", "an animal") == "an animal"
    assert refine_caption("a", "b", sep=" / ") == "a / b"


def scenes(n=60):
    """Codes of three kinds of pictures, scores, captions."""
    kinds = torch.arange(n) % 3
    codes = 10 * kinds[:, None] + torch.randint(3, (n, 4), generator=rng())
    return codes, torch.rand(n, generator=rng(1)), [f"caption {i}" for i in range(n)], [f"said {i}" for i in range(n)]


def test_reduction():
    codes, scores, captions, generated = scenes()
    found = reduce_dataset(codes, scores, captions, generated, 3, every=2, generator=rng())
    rows = found.keep.tolist()
    assert rows == sorted(set(rows))
    assert found.captions == [f"caption {i}; said {i}" for i in rows]
    assert bool(top_by_score(scores)[found.keep].all())  # the better half of the whole set, not of the selection
    assert found.report["samples"] == 60
    assert found.report["kept"] == len(rows) == found.report["reasons"][KEPT]
    assert sum(found.report["reasons"].values()) == 60
    assert found.report["reasons"][REDUNDANT] >= 30 - 3
    assert found.report["reasons"][MISMATCHED] == 60 - found.report["reasons"][REDUNDANT] - len(rows)
    again = reduce_dataset(codes, scores, captions, generated, 3, every=2, generator=rng())
    assert torch.equal(again.keep, found.keep)
    everything = reduce_dataset(codes, scores, captions, generated, 3, every=1, itm_fraction=1.0, generator=rng())
    assert everything.keep.tolist() == list(range(60))
    for kind, whiten_dim in (("histogram", None), ("histogram", 3), ("index", 2)):
        part = reduce_dataset(
            codes, scores, captions, generated, 3, fraction=0.3, kind=kind, whiten_dim=whiten_dim, generator=rng()
        )
        assert 0 < len(part.keep) < 30


def test_only_what_is_kept_needs_a_description():
    codes, scores, captions, generated = scenes()
    asked = []

    def describe(keep):
        asked.append(keep.tolist())
        return [generated[i] for i in keep.tolist()]

    found = reduce_dataset(codes, scores, captions, describe, 3, every=2, generator=rng())
    assert asked == [found.keep.tolist()]
    assert found.captions == reduce_dataset(codes, scores, captions, generated, 3, every=2, generator=rng()).captions
    with pytest.raises(ValueError, match="generated wrote 1 captions"):
        reduce_dataset(codes, scores, captions, lambda keep: ["one"], 3, every=2, generator=rng())


def test_histogram_clusters_find_the_kinds():
    codes, scores, *_ = scenes()
    found = choose(codes, scores, Choice(3, every=1, kind="histogram", whiten_dim=2), rng(3))
    kinds = [set((torch.nonzero(found.labels == cluster).flatten() % 3).tolist()) for cluster in range(3)]
    assert sorted(map(sorted, kinds)) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"every": None}, "exactly one"),
        ({"fraction": 0.5}, "every=2 and fraction=0.5"),
        ({"every": None, "fraction": 0.0}, "fraction=0.0"),
        ({"generator": None}, "generator=None"),
        ({"captions": ["a"]}, "captions has 1 entries for 60"),
        ({"generated": ["a"]}, "generated has 1 entries"),
        ({"itm_scores": torch.ones(3)}, r"itm_scores \(3,\)"),
        ({"num_clusters": 61}, r"num_clusters=61.*\[1, 60\]"),
        ({"num_clusters": 0}, "num_clusters=0"),
        ({"kind": "mean"}, "kind='mean'"),
        ({"whiten_dim": 9}, "dim=9"),
    ],
)
def test_bad_reductions(change, match):
    codes, scores, captions, generated = scenes()
    given = {"indices": codes, "itm_scores": scores, "captions": captions, "generated": generated}
    with pytest.raises(ValueError, match=match):
        reduce_dataset(**given | {"num_clusters": 3, "every": 2, "generator": rng()} | change)
