"""A world is a sequence of samples that depend on (config, seed, index) alone and agree with themselves."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data import world
from foveal.data.record import Sample
from foveal.data.world.batches import classify, pairs
from foveal.data.world.config import WorldConfig
from foveal.data.world.dataset import EXTRAS, SEMANTIC, World
from foveal.data.world.sequences import Clips, ViewPairs
from foveal.data.world.vocabulary import NOUNS, STYLES

CONFIG = WorldConfig(size=48, things=(1, 5), writing=0.2, styles=STYLES)


def digest(sample):
    """A fingerprint of all that a sample says."""
    arrays = [*sample.images, sample.semantic, sample.depth, sample.meta.get("instance", np.zeros(1))]
    text = repr((sample.key, sample.captions, sample.labels, sample.questions, [r.box for r in sample.regions]))
    return hashlib.sha256(b"".join([text.encode(), *(np.ascontiguousarray(a).tobytes() for a in arrays)])).hexdigest()


def poison():
    np.random.seed(0)  # noqa: NPY002 - the global generator is what must not matter
    np.random.random(3)  # noqa: NPY002


def test_the_promise_of_the_docs():
    source = world.World(world.WorldConfig(size=64), seed=0)
    sample = source[0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (64, 64, 3)
    assert len(world.pairs(seed=0, n=3)) == 3
    assert len(source) == 10_000


@pytest.mark.parametrize("source", [World(CONFIG, 3, 50), ViewPairs(World(CONFIG, 3, 50)), Clips(CONFIG, 3, 50, 4)])
def test_deterministic_in_every_order_and_process(source):
    first = [digest(source[i]) for i in range(4)]
    poison()
    assert [digest(source[i]) for i in (3, 2, 1, 0)] == first[::-1]
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert digest(copy[2]) == first[2]
    kind = type(source).__name__
    made = {
        "World": "World(CONFIG, 3, 50)",
        "ViewPairs": "ViewPairs(World(CONFIG, 3, 50))",
        "Clips": "Clips(CONFIG, 3, 50, 4)",
    }[kind]
    script = f"from {__name__} import *; s = {made}; print(*(digest(s[i]) for i in range(4)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.split() == first


def test_import_and_basic_use_without_torch():
    script = (
        "import sys; from foveal.data import world; world.World(seed=1)[0]; world.pairs(seed=0, n=2); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 99))
def test_parts_of_a_sample_agree(seed, index):
    sample = World(CONFIG, seed, 100)[index]
    scene, instance = sample.meta["scene"], sample.meta["instance"]
    assert sample.labels == tuple(dict.fromkeys(thing.noun for thing in scene.things))
    assert len(sample.regions) == len(scene.things) == len(sample.meta["attributes"]) == len(sample.meta["novel"])
    for i, (region, thing) in enumerate(zip(sample.regions, scene.things)):
        assert region.label == thing.noun
        assert thing.noun in region.caption
        assert (region.mask == (instance == i + 1)).all()
        ys, xs = np.nonzero(region.mask)
        assert region.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert (sample.semantic[region.mask] == SEMANTIC[thing.noun]).all()
    assert ((sample.semantic == 0) == (instance == 0)).all()
    assert sample.captions[1] == " ".join(sentence.text for sentence in sample.meta["long"])
    assert len(sample.captions) == 4
    assert sum(sample.meta["counts"].values()) == len(scene.things)
    assert np.isfinite(sample.depth).all()


def test_semantic_values_fit_a_byte():
    assert SEMANTIC[NOUNS[0]] == 1
    assert sorted(SEMANTIC.values()) == list(range(1, len(NOUNS) + 1))
    assert len(NOUNS) < 256


def test_extras_can_be_left_out_without_changing_the_rest():
    full, bare = World(CONFIG, 5)[7], World(CONFIG, 5, extras=())[7]
    assert bare.caption == full.caption
    assert bare.captions == full.captions[:1]
    assert (bare.image == full.image).all()
    assert [r.box for r in bare.regions] == [r.box for r in full.regions]
    assert not bare.questions
    assert bare.regions[0].mask is None
    assert "relations" not in bare.meta
    asked = World(CONFIG, 5, extras=("questions",))[7]
    assert asked.questions == full.questions


def test_seeds_and_ranges_share_no_scene():
    scenes = {World(seed=seed).scene(i).with_(key="") for seed in (0, 1) for i in range(300)}
    assert len(scenes) == 600
    first, second = pairs(0, 40, first=0), pairs(0, 40, first=40)
    assert not {s.things for s in first.scenes} & {s.things for s in second.scenes}


def test_indices():
    source = World(CONFIG, 0, 5)
    assert source[-1].key == source[4].key
    assert [sample.key for sample in source] == [source[i].key for i in range(5)]
    assert [sample.key for sample in source[1:3]] == [source[1].key, source[2].key]
    assert source[np.int64(2)].key == source[2].key
    for bad in (5, -6):
        with pytest.raises(IndexError, match=str(bad)):
            source[bad]
    with pytest.raises(TypeError):
        source[1.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"length": -1}, "length=-1"),
        ({"extras": ("masks",)}, "'masks'"),
        ({"negatives": "hard"}, "'hard'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        World(CONFIG, **arguments)


def test_pairs_are_what_the_world_gives():
    made = pairs(9, 6, CONFIG, first=2)
    source = World(CONFIG, 9, extras=())
    for i in range(6):
        assert (made.images[i] == source[2 + i].image).all()
        assert made.captions[i] == source[2 + i].caption
        assert made.nouns[i] == source[2 + i].labels
    assert made.images.dtype == np.uint8
    assert len(pairs(0, 0)) == 0
    for name in ("seed", "n", "first"):
        with pytest.raises(ValueError, match=f"{name}=-2"):
            pairs(**{"seed": 0, "n": 1, "first": 0, name: -2})


def test_classify_is_balanced_and_shows_one_thing():
    nouns = ("star", "dog", "pizza")
    made = classify(0, 31, nouns, WorldConfig(size=32, spurious={"dog": "snow", "cat": "sand"}))
    assert sorted(np.bincount(made.labels)) == [10, 10, 11]
    for label, scene in zip(made.labels, made.scenes):
        assert [thing.noun for thing in scene.things] == [made.names[label]]
    assert made.images.shape == (31, 32, 32, 3)
    assert not (made.labels[:-1] <= made.labels[1:]).all()  # shuffled
    with pytest.raises(ValueError, match="each of them once"):
        classify(0, 4, ("star", "star"))
    with pytest.raises(ValueError, match="spaceship"):
        classify(0, 4, ("spaceship",))


def test_view_pairs_match_points():
    source = ViewPairs(World(CONFIG, 2, extras=()), distractors=1)
    sample = source[0]
    assert len(sample.images) == 2
    view, flow, covisible = (sample.meta[name] for name in ("view", "flow", "covisible"))
    checked = 0
    for i in range(10):
        sample = source[i]
        view, flow, covisible = (sample.meta[name] for name in ("view", "flow", "covisible"))
        for thing, match in enumerate(view.matches):
            seen = covisible & (sample.meta["instance"] == thing + 1)
            for y, x in np.argwhere(seen)[::7]:
                u, v = flow[y, x].astype(int)
                assert sample.meta["instance2"][v, u] == match + 1
                checked += 1
    assert checked > 50


def test_clips_number_things_through_all_frames():
    source = Clips(CONFIG, 4, 20, frames=6)
    for i in range(20):
        sample = source[i]
        made = sample.meta["clip"]
        assert len(sample.images) == len(made.frames) == 6
        assert len(sample.regions) == len(made.frames[0].things)
        for time, (instance, boxes) in enumerate(zip(sample.meta["instances"], sample.meta["boxes"])):
            assert set(np.unique(instance)) - {0} <= {1 + thing for thing in made.present[time]}
            for thing, (x0, y0, x1, y1) in boxes.items():
                ys, xs = np.nonzero(instance == thing + 1)
                if len(xs):
                    assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert sample.captions[1] == " ".join(sentence.text for sentence in sample.meta["story"])
    with pytest.raises(ValueError, match="seed=-1"):
        Clips(seed=-1)


def test_in_data_loader_workers():
    from torch.utils.data import DataLoader

    source = World(CONFIG, 6, 8)
    alone = [digest(source[i]) for i in range(8)]
    loader = DataLoader(source, batch_size=2, num_workers=2, collate_fn=list)
    assert [digest(sample) for batch in loader for sample in batch] == alone


def test_every_extra_is_documented():
    assert all(f'"{extra}"' in World.__doc__ or f"``{extra}``" in World.__doc__ for extra in EXTRAS)
