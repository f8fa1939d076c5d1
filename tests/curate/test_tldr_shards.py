import json

import numpy as np
import pytest
import torch

from foveal.curate import base
from foveal.curate.base import measure_shards, samples_at
from foveal.curate.tldr import KEPT, MISMATCHED, REDUNDANT, Choice, load_captioner
from foveal.curate.tldr_shards import Parts, reduce_shards
from foveal.curate.tldr_train import captioner_pixels, train_captioner
from foveal.data.record import Sample
from foveal.data.webdataset import Shards, write_shards

from .contract import sample

torch.set_num_threads(1)
CHOICE = Choice(3, every=2, itm_fraction=0.75)


@pytest.fixture
def shards(tmp_path):
    return write_shards(map(sample, range(50)), str(tmp_path / "in" / "train-%03d.tar"), 20)


class Eyes:
    """Codes by brightness, a score that the caption itself tells; counts what it is asked."""

    def __init__(self):
        self.seen, self.described = 0, 0

    def parts(self, describe=True, **changes):
        named = {"measured_by": "grey eyes", "described_by": "grey mouth"}
        return Parts(self.codes, 256, self.match, self.describe if describe else None, **named | changes)

    def codes(self, pictures):
        self.seen += len(pictures)
        return np.stack([[picture[0, 0, 0], picture[-1, -1, 0]] for picture in pictures]).astype(np.int64)

    def match(self, pictures, captions):
        return [int(caption.split()[1]) / 10 for caption in captions]

    def describe(self, pictures):
        self.described += len(pictures)
        return [f"grey {picture[0, 0, 0]}" for picture in pictures]


def read(reduced):
    return list(Shards(reduced.shards))


def test_shards_are_reduced(shards, tmp_path):
    eyes = Eyes()
    reduced = reduce_shards(shards, tmp_path / "out", eyes.parts(), CHOICE, batch_size=7)
    found = read(reduced)
    assert [s.key for s in found] == sorted({s.key for s in found}, key=lambda key: int(key.split()[1]))
    assert 5 < len(found) < 26
    assert eyes.seen == 50
    kept = reduced.report["reasons"][KEPT]
    assert kept == len(found) == reduced.report["kept"]
    assert eyes.described == kept + min(kept, 6)  # the examples are described anew
    for new in found:
        old = sample(new.meta["i"])
        assert np.array_equal(new.image, old.image)
        assert new.captions == (f"{old.caption}; grey {old.image[0, 0, 0]}", "second")
        assert new.meta["tldr"]["original"] == old.caption
        assert new.meta["tldr"]["itm"] > 0.2
        assert new.labels == ("grey",)
    assert sum(reduced.report["reasons"].values()) == 50
    assert json.loads(json.dumps(reduced.report)) == reduced.report


def test_examples_say_why(shards, tmp_path):
    reduced = reduce_shards(shards, tmp_path / "out", Eyes().parts(), CHOICE, examples=4)
    by_reason = {reason: [e for e in reduced.examples if e.reason == reason] for reason in reduced.report["reasons"]}
    assert all(1 <= len(found) <= 4 for found in by_reason.values())
    assert all("; grey" in example.caption for example in by_reason[KEPT])
    differences = [abs(int(e.picture.max()) - int(e.instead.max())) for e in by_reason[REDUNDANT]]
    assert max(differences) < 5  # of the same cluster
    assert min(differences) == 0  # the most alike of those that are kept
    scores = [example.itm for example in by_reason[MISMATCHED]]
    assert scores == sorted(scores)
    assert max(scores) < 0.4
    assert reduce_shards(shards, tmp_path / "none", Eyes().parts(), CHOICE, examples=0).examples == []


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_with_the_shard_it_was_in(shards, tmp_path):
    whole = reduce_shards(shards, tmp_path / "whole", Eyes().parts(), CHOICE)
    eyes = Eyes()
    for what, done in (("measuring shards", 1), ("measuring shards", 2), ("writing shards", 1), ("writing shards", 2)):

        def watch(now, count, total, what=what, done=done):
            if (now, count) == (what, done):
                raise Killed

        with pytest.raises(Killed):
            reduce_shards(shards, tmp_path / "out", eyes.parts(), CHOICE, watch=watch)
    resumed = reduce_shards(shards, tmp_path / "out", eyes.parts(), CHOICE, examples=0)
    assert eyes.seen == 50
    assert eyes.described == whole.report["kept"]
    assert [path.read_bytes() for path in resumed.shards] == [path.read_bytes() for path in whole.shards]
    assert resumed.report == whole.report


def test_what_has_changed_is_made_anew(shards, tmp_path):
    eyes, out = Eyes(), tmp_path / "out"
    first = reduce_shards(shards, out, eyes.parts(), CHOICE, examples=0)
    reduce_shards(shards, out, eyes.parts(), CHOICE, examples=0)
    assert eyes.seen == 50
    other = reduce_shards(shards, out, eyes.parts(), Choice(3, every=3, itm_fraction=0.75), examples=0)
    assert eyes.seen == 50  # another choice needs no new look
    assert other.report["kept"] < first.report["kept"]
    assert sorted(out.glob("*.tar")) == sorted(other.shards)
    plain = reduce_shards(shards, out, eyes.parts(describe=False, described_by="nobody"), CHOICE, examples=0)
    assert [s.caption for s in read(plain)] == [s.meta["tldr"]["original"] for s in read(plain)]
    reduce_shards(shards, out, eyes.parts(measured_by="others"), CHOICE, examples=0)
    assert eyes.seen == 100
    write_shards(map(sample, range(100, 110)), str(tmp_path / "new-%d.tar"), 20)
    (tmp_path / "new-0.tar").replace(shards[0])
    reduce_shards(shards, out, eyes.parts(measured_by="others"), CHOICE, examples=0)
    assert eyes.seen == 110  # the new shard only


def test_what_cannot_be_used_is_counted(tmp_path):
    samples = [*map(sample, range(10)), Sample("mute", (np.zeros((4, 4, 3), np.uint8),)), Sample("dark", (), ("x 1",))]
    shards = write_shards(samples, str(tmp_path / "in-%d.tar"))
    reduced = reduce_shards(shards, tmp_path / "out", Eyes().parts(), CHOICE)
    assert reduced.report["skipped"] == {"no caption": 1, "no image": 1}
    assert reduced.report["samples"] == 10
    empty = write_shards(samples[10:], str(tmp_path / "empty-%d.tar"))
    with pytest.raises(ValueError, match="not one sample of 1 shards"):
        reduce_shards(empty, tmp_path / "out2", Eyes().parts(), CHOICE)
    with pytest.raises(ValueError, match="nothing is left of 10 samples"):
        reduce_shards(shards, tmp_path / "out3", Eyes().parts(), Choice(3, every=2, itm_fraction=0.05))
    with pytest.raises(ValueError, match=r"holds in-0\.tar, which is to be read"):
        reduce_shards(shards, tmp_path, Eyes().parts(), CHOICE)


def test_meta_that_json_cannot_hold_is_left_out_and_counted(tmp_path, monkeypatch):
    shards = write_shards(map(sample, range(10)), str(tmp_path / "in-%d.tar"))

    class Foreign(Shards):
        def __iter__(self):
            return (s.with_(meta={**s.meta, "npy": np.zeros(3)}) for s in super().__iter__())

    monkeypatch.setattr(base, "Shards", Foreign)
    reduced = reduce_shards(shards, tmp_path / "out", Eyes().parts(), CHOICE)
    assert reduced.report["meta left out"] == {"npy": reduced.report["kept"]}
    assert all("i" in s.meta for s in read(reduced))


def test_samples_by_their_places(shards):
    found = samples_at(shards, [(2, 3), (0, 0), (2, 1)])
    assert [s.meta["i"] for s in found] == [43, 0, 41]


def test_measures_of_several_widths(shards, tmp_path):
    def measure(samples):
        return {"i": np.array([s.meta["i"] for s in samples]), "vector": np.ones((len(samples), 3))}

    measured = measure_shards(shards, tmp_path / "work", measure, stamp="", batch_size=8)
    assert measured.values["i"].tolist() == list(range(50))
    assert measured.values["vector"].shape == (50, 3)
    assert measured.shard.tolist() == [0] * 20 + [1] * 20 + [2] * 10
    assert measured.row.tolist() == [*range(20), *range(20), *range(10)]
    assert measured.keys[21] == "sample 21"


def test_a_captioner_is_trained_on_shards_once(shards, tmp_path):
    size = {"image_size": 16, "width": 48, "layers": 1, "num_codes": 16}
    model, tokenizer = train_captioner(shards, tmp_path / "c", steps=3, batch_size=8, vocabulary=520, **size)
    again, _ = train_captioner(shards, tmp_path / "c", steps=3, batch_size=8, vocabulary=520, **size)
    pixels = captioner_pixels([sample(0).image, sample(1).image], model)
    assert pixels.shape == (2, 3, 16, 16)
    assert -1 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert torch.equal(model.codes(pixels), again.codes(pixels))
    assert torch.equal(load_captioner(tmp_path / "c")[0].codebook, model.codebook)
    assert len(model.generate(pixels, tokenizer, prompt="", max_length=12)) == 2
