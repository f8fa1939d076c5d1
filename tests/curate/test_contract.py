import json

import numpy as np
import pytest

from foveal.data.record import Sample
from foveal.data.webdataset import Shards, write_shards

from .contract import CASES, Case, sample

USELESS = [Sample("mute", (np.zeros((4, 4, 3), np.uint8),)), Sample("blind", (), ("quality 1",))]
SAMPLES = [*map(sample, range(47)), *USELESS]


def silent(what, done, total):
    pass


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def shards(tmp_path):
    return write_shards(SAMPLES, str(tmp_path / "in" / "train-%03d.tar"), 20)


def contents(paths):
    return [path.read_bytes() for path in paths]


def test_same_input_same_output_and_the_input_stays(case, shards, tmp_path):
    before = contents(shards)
    first, report = case.run(shards, tmp_path / "first", silent)
    second, again = case.run(shards, tmp_path / "second", silent)
    assert contents(first) == contents(second)
    assert report == again
    assert contents(shards) == before
    third, _ = case.run(shards, tmp_path / "first", silent)
    assert contents(third) == contents(first)


def test_killed_anywhere_it_ends_the_same(case, shards, tmp_path):
    steps = []
    whole, report = case.run(shards, tmp_path / "whole", lambda *step: steps.append(step))
    assert len(steps) >= len(shards)
    for step in steps:

        def watch(*now, step=step):
            if now == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            case.run(shards, tmp_path / "out", watch)
    written, again = case.run(shards, tmp_path / "out", silent)
    assert contents(written) == contents(whole)
    assert again == report
    assert sorted((tmp_path / "out").rglob("*.tar")) == sorted(written)


def test_what_is_written_is_what_was_read(case, shards, tmp_path):
    written, _ = case.run(shards, tmp_path / "out", silent)
    found = list(Shards(written))
    assert len({new.key for new in found}) == len(found)
    for new in found:
        old = SAMPLES[new.meta["i"]]
        assert (new.key, new.labels, new.captions[1:]) == (old.key, old.labels, old.captions[1:])
        assert np.array_equal(new.image, old.image)
        assert case.caption(old, new.caption)


def test_every_sample_is_accounted_for(case, shards, tmp_path):
    written, report = case.run(shards, tmp_path / "out", silent)
    assert json.loads(json.dumps(report)) == report
    assert report["method"] == case.name
    assert report["kept"] == len(list(Shards(written)))
    assert sum(report["reasons"].values()) == report["samples"] == 47
    assert report["skipped"] == {"no caption": 1, "no image": 1}
    assert report["shards"] == [path.name for path in written]


def test_bad_shards_are_refused(case, shards, tmp_path):
    with pytest.raises(ValueError, match="to be read"):
        case.run(shards, tmp_path / "in", silent)
    assert sorted((tmp_path / "in").iterdir()) == shards  # refused before anything was done
    useless = write_shards(USELESS, str(tmp_path / "useless-%d.tar"))
    with pytest.raises(ValueError, match="not one sample"):
        case.run(useless, tmp_path / "out", silent)
