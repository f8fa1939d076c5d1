import contextlib
import gzip
import io
import json
import logging
import os
import pickle
import tarfile
from itertools import chain

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from foveal.data import tar_members as tars
from foveal.data.faults import SampleError, TooManyFaults
from foveal.data.record import Question, Region, Sample, Turn
from foveal.data.webdataset import ShardBatches, Shards, write_shards
from foveal.train.batches import Stream

from .pictures import encoded, ramp, truncated


def pack(path, files, links=()):
    """A tar of (name, content) pairs and links."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
        for name, kind in links:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    return path


def numbered(folder, shards=3, each=4):
    """Shards of captions "0", "1", … in order."""
    samples = [Sample(str(number), captions=(str(number),)) for number in range(shards * each)]
    write_shards(samples, f"{folder}/s-%02d.tar", each)
    return f"{folder}/s-{{00..{shards - 1:02d}}}.tar"


def captions(samples):
    return [sample.caption for sample in samples]


def keys(samples):
    return [sample.key for sample in samples]


# --- what is in a sample


def test_shards_of_others(tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    files = [
        ("a/1.jpg", encoded(ramp(), "JPEG")),
        ("a/1.TXT", b"\xef\xbb\xbfa ramp\n"),
        ("a/1.json", b'{"url": "http://x"}'),
        ("a/1.seg.png", encoded(ramp())),
        ("a/1.emb.npy", array.getvalue()),
        ("a/1.mp4", b"video"),
        ("README", b"no sample"),
        ("a/2.0.png", encoded(ramp())),
        ("a/2.1.png", encoded(ramp(3, 3))),
        ("a/2.cls", b"7\n"),
    ]
    one, two = Shards(pack(tmp_path / "x.tar", files))
    assert (one.key, one.captions, one.image.shape) == ("x.tar/a/1", ("a ramp",), ramp().shape)
    assert (one.meta["json"], one.meta["mp4"]) == ({"url": "http://x"}, b"video")
    assert one.meta["emb.npy"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(one.meta["seg.png"], ramp())
    assert [image.shape for image in two.images] == [(6, 8, 3), (3, 3, 3)]
    assert two.labels == ("7",)


def rich():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 1:] = True
    return Sample(
        "cats/1.jpg",
        images=tuple(ramp() + number for number in range(11)),
        captions=("one", "zwei ü", "three"),
        labels=("cat", "pet"),
        regions=(Region((0.5, 1, 2, 3)), Region((1, 2, 8, 4), "cat", "a cat", mask)),
        questions=(Question("How many?", ("2", "two"), "count"),),
        conversation=(Turn("user", "<image>Hm?"), Turn("assistant", "Yes.")),
        semantic=np.arange(48, dtype=np.uint8).reshape(6, 8),
        depth=np.linspace(0, 9, 48, dtype=np.float32).reshape(6, 8),
        meta={"url": "x", "score": 0.5, "list": [1, None]},
    )


def same(left, right):
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Region):
        return all(same(getattr(left, name), getattr(right, name)) for name in Region.__slots__)
    return left == right


def test_everything_a_sample_knows_is_written_and_read_back(tmp_path):
    samples = [rich(), Sample("bare"), Sample("one", images=(ramp(),), captions=("c",))]
    (path,) = write_shards(samples, f"{tmp_path}/deep/er/%03d.tar")
    for sample, again in zip(samples, Shards(path), strict=True):
        for name in Sample.__slots__:
            assert same(getattr(sample, name), getattr(again, name)), name
    again = write_shards(samples, f"{tmp_path}/again-%d.tar")[0]
    assert again.read_bytes() == path.read_bytes()  # no time stamps


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path):
    (path,) = write_shards([Sample("k", images=(ramp(),), captions=("c",))], f"{tmp_path}/%d.tar", jpeg_quality=90)
    (raw,) = webdataset.WebDataset(str(path), shardshuffle=False)
    assert raw["txt"] == b"c"
    assert raw["jpg"].startswith(b"\xff\xd8")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        writer.write({"__key__": "0", "png": ramp(), "txt": "theirs"})
    (sample,) = Shards(tmp_path / "theirs.tar")
    np.testing.assert_array_equal(sample.image, ramp())
    assert sample.caption == "theirs"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize(
    "suffix", ["pkl", "pyd", "pickle", "pth", "pt", "npy", "npz", "json", "txt", "jpg", "foveal.json"]
)
def test_nothing_is_unpickled(tmp_path, suffix):
    payload = pickle.dumps(Payload(tmp_path / "pwned"))
    if suffix == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Payload(tmp_path / "pwned")], dtype=object), allow_pickle=True)
        payload = buffer.getvalue()
    path = pack(tmp_path / "x.tar", [(f"1.{suffix}", payload), ("2.txt", b"fine")])
    reader = Shards(path)
    samples = list(reader)
    assert not (tmp_path / "pwned").exists()
    assert samples[-1].caption == "fine"
    if suffix in ("pkl", "pyd", "pickle", "pth", "pt", "npz"):
        assert samples[0].meta == {suffix: payload}
    else:
        assert reader.faults.total == 1
    pickle.loads(payload) if suffix != "npy" else np.load(io.BytesIO(payload), allow_pickle=True)
    assert (tmp_path / "pwned").exists()  # it would have


# --- archives


def test_unsafe_members(tmp_path, monkeypatch):
    files = [
        ("/etc/1.txt", b"x"),
        ("a/../../2.txt", b"x"),
        ("..\\3.txt", b"x"),
        ("4.txt", b"fine"),
        ("5.jpg", encoded(ramp())),
        ("5.txt", b"y" * 30_000),
        ("6.txt", b"one"),
        ("6.txt", b"two"),
        ("7.txt", b"x"),
        ("8.txt", b"fine too"),
        ("7.json", b"{}"),
    ]
    links = [
        ("9.txt", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("10.txt", tarfile.CHRTYPE),
        ("dir.txt", tarfile.DIRTYPE),
    ]
    monkeypatch.setattr(tars, "MAX_BYTES", 10_000)
    reader = Shards(pack(tmp_path / "x.tar", files, links), max_fraction=1.0)
    assert captions(reader) == ["fine", "x", "fine too"]
    assert reader.faults.counts == {
        "unsafe name in shard": 3,
        "too large a file in shard": 1,
        "scattered sample in shard": 2,
        "no plain file in shard": 3,
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]


def test_a_sample_with_a_sparse_file_is_a_fault(tmp_path):
    """Some bytes that claim to be a gigabyte of zeros."""
    header = tarfile.TarInfo("1.txt")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % 2**30
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(block) + pack(tmp_path / "y.tar", [("2.txt", b"fine")]).read_bytes())
    reader = Shards(path)
    assert captions(reader) == ["fine"]
    assert reader.faults.counts == {"no plain file in shard": 1}


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1024, 1500, 2048 + 100, 6000])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_shard_is_one_fault_and_the_next_is_read(tmp_path, cut, zipped):
    content = pack(tmp_path / "whole.tar", [(f"{n}.txt", b"x" * 700) for n in range(4)]).read_bytes()
    if zipped:
        content = gzip.compress(content, compresslevel=0)
    (tmp_path / "a.tar").write_bytes(content[:cut])
    pack(tmp_path / "b.tar", [("9.txt", b"next")])
    reader = Shards([tmp_path / "a.tar", tmp_path / "b.tar"])
    found = keys(reader)
    assert found == [f"a.tar/{n}" for n in range(len(found) - 1)] + ["b.tar/9"]
    assert len(found) - 1 <= cut // 1536
    assert reader.faults.counts == {"truncated or damaged shard": 1}
    assert reader.faults.keys == {"truncated or damaged shard": ["a.tar"]}
    with pytest.raises(SampleError, match=r"a\.tar to its end: .*; copy or download it again"):
        list(Shards([tmp_path / "a.tar", tmp_path / "b.tar"], strict=True))


def test_a_damaged_header_in_the_middle_does_not_pass_for_the_end(tmp_path):
    path = pack(tmp_path / "a.tar", [(f"{n}.txt", b"x") for n in range(4)])
    content = bytearray(path.read_bytes())
    content[2048 + 20] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as believed:
        assert len(believed.getnames()) == 2  # to the standard library this is the end
    reader = Shards(path)
    assert keys(reader) == ["a.tar/0"]  # 1 may have had more files
    assert reader.faults.total == 1


@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=20), st.booleans())
def test_any_bytes_end_well(tmp_path_factory, changes, zipped):
    path = tmp_path_factory.mktemp("fuzz") / "x.tar"
    content = bytearray(pack(path, [("é" * 80 + f"/{n}.txt", b"x" * 9) for n in range(3)]).read_bytes()[:5000])
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(gzip.compress(content) if zipped else content)
    with contextlib.suppress(TooManyFaults):
        assert len(list(Shards(path))) <= 3


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
    packed = gzip.compress(header.tobuf() + bytes(2**22))
    (tmp_path / "a.tar").write_bytes(packed)
    with pytest.raises(SampleError, match="claims 8589934591 bytes"):
        list(tars.tar_members(tmp_path / "a.tar"))


# --- shares, order and resuming


@pytest.mark.parametrize(("shards", "parts"), [(4, 1), (4, 2), (5, 2), (4, 4), (3, 4), (1, 3), (2, 5)])
@pytest.mark.parametrize("seed", [None, 3])
def test_shares_are_disjoint_and_complete(tmp_path, shards, parts, seed):
    reader = Shards(numbered(tmp_path, shards), seed=seed)
    shares = [[sample.caption for _, sample in reader.share(part, parts)] for part in range(parts)]
    assert all(shares)
    assert sorted(chain(*shares), key=int) == [str(number) for number in range(shards * 4)]


def test_order_by_seed_and_epoch(tmp_path):
    pattern = numbered(tmp_path, 6, 1)
    assert captions(Shards(pattern)) == list("012345")
    reader = Shards(pattern, seed=1)
    epochs = [captions(reader) for _ in range(3)]
    assert reader.epoch == 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [captions(again) for again in [Shards(pattern, seed=1)] for _ in range(3)] == epochs
    assert captions(Shards(pattern, seed=2)) != epochs[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_data_loader_share(tmp_path, workers):
    loader = DataLoader(Shards(numbered(tmp_path)), batch_size=None, num_workers=workers)
    assert sorted(map(int, captions(loader))) == list(range(12))


def test_workers_started_afresh_know_their_process(tmp_path, monkeypatch):
    reader = Shards(numbered(tmp_path, 2))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    content = pickle.dumps(reader)
    assert captions(reader) == list("4567")
    monkeypatch.undo()
    assert captions(pickle.loads(content)) == list("4567")
    assert len(captions(reader)) == 8


def with_a_bad_one(folder):
    pattern = numbered(folder)
    pack(folder / "s-01.tar", [("4.txt", b"4"), ("5.jpg", truncated()), ("6.txt", b"6"), ("7.txt", b"7")])
    return pattern


@pytest.mark.parametrize("seed", [None, 5])
def test_resumes_at_the_next_sample(tmp_path, seed):
    pattern = with_a_bad_one(tmp_path)
    whole = Shards(pattern, seed=seed)
    expected = captions(whole) + captions(whole)
    assert len(expected) == 22
    for stop in range(23):
        first, second = Shards(pattern, seed=seed), Shards(pattern, seed=seed)
        samples, taken = endless(first), []
        for _ in range(stop):
            taken.append(next(samples).caption)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.state_dict() == first.state_dict()
        rest = endless(second)
        assert taken + [next(rest).caption for _ in range(22 - stop)] == expected


def endless(reader):
    while True:
        yield from reader


def test_a_pass_broken_off_starts_over(tmp_path):
    reader = Shards(numbered(tmp_path))
    next(iter(reader))
    assert captions(reader)[0] == "0"


def test_a_state_of_other_shards_is_refused(tmp_path):
    reader = Shards(numbered(tmp_path), seed=1)
    state = reader.state_dict()
    with pytest.raises(ValueError, match=r"seed=2: the saved position is for seed=1"):
        Shards(reader.paths, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="shards=2: the saved position is for shards=3"):
        Shards(reader.paths[:2], seed=1).load_state_dict(state)
    batches = ShardBatches(reader, 2, captions)
    with pytest.raises(ValueError, match="batch_size=3"):
        ShardBatches(reader, 3, captions).load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match="batch_size=0"):
        ShardBatches(reader, 0, captions)


@pytest.mark.parametrize(("workers", "stops"), [(0, range(14)), (2, (0, 1, 4, 5, 6, 7))])
def test_batches_resume_through_the_training_stream(tmp_path, workers, stops):
    pattern = with_a_bad_one(tmp_path)

    def stream():
        return Stream(ShardBatches(Shards(pattern, seed=4), 2, captions, workers=workers), accumulate=1)

    whole = stream().open(0, None)
    expected = [next(whole) for _ in range(14)]
    for stop in stops:
        first, second = stream(), stream()
        batches = first.open(0, None)
        taken = [next(batches) for _ in range(stop)]
        rest = second.open(stop, first.state())
        assert taken + [next(rest) for _ in range(14 - stop)] == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2, 5])
def test_batches_lose_nothing(tmp_path, workers):
    batches = ShardBatches(Shards(numbered(tmp_path), seed=0), 3, captions, workers=workers)
    for _ in range(2):
        assert sorted(map(int, chain(*batches))) == list(range(12))
    assert batches.state_dict()["epoch"] == 2


def test_faults_in_workers_are_told(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    strict = Shards([tmp_path / "bad.tar"], strict=True)
    with pytest.raises(SampleError, match=r"bad\.tar"):
        list(ShardBatches(strict, 1, captions, workers=1))


# --- arguments and writing


@pytest.mark.parametrize("shards", ["http://a/b.tar", "pipe:cat x.tar", ["s3://a/{0..3}.tar"]])
def test_urls_and_commands_are_refused(shards):
    with pytest.raises(ValueError, match="is no local path"):
        Shards(shards)


def test_missing_shards(tmp_path):
    with pytest.raises(ValueError, match="not one of 3 files exists"):
        Shards(f"{tmp_path}/{{0..2}}.tar")
    numbered(tmp_path, 2)
    reader = Shards(f"{tmp_path}/s-{{00..02}}.tar")
    assert len(captions(reader)) == 8
    assert reader.faults.counts == {"missing shard": 1}


def test_more_readers_than_shards_is_told(tmp_path, caplog):
    reader = Shards(numbered(tmp_path, 1))
    with caplog.at_level(logging.WARNING):
        list(reader.share(0, 2))
    assert "1 shards for 2 readers" in caplog.text


def test_names_of_two_folders_stay_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pack(tmp_path / name / "x.tar", [("1.txt", b"x")])
    assert keys(Shards([tmp_path / "a/x.tar", tmp_path / "b/x.tar"])) == ["x.tar/1", "x.tar@1/1"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([Sample("a"), Sample("a")], "%d.tar"), "'a' twice"),
        (([Sample("a", meta={"x": {1}})], "%d.tar"), "sample 'a': meta must be JSON-able"),
        (([], "x.tar"), "pattern='x.tar': needs one number"),
        (([], "%d-%d.tar"), "needs one number"),
        (([], "%d.tar", 0), "samples_per_shard=0"),
    ],
)
def test_what_cannot_be_written(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason):
        write_shards(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_whole_shards_only(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    samples = [Sample(str(number), captions=("x",)) for number in range(5)]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(samples, f"{tmp_path}/%d.tar", 2)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert [path.name for path in write_shards(samples, f"{tmp_path}/%d.tar", 2)] == ["0.tar", "1.tar", "2.tar"]
    assert len(list(tmp_path.iterdir())) == 3
