import json
import pickle

import numpy as np
import pytest

from foveal.data.faults import SampleError
from foveal.data.llava_json import LlavaJson, write_llava_json
from foveal.data.record import Sample, Turn

from .pictures import encoded, ramp


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(ramp()))
    return tmp_path


def llava(**changes):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ramp."}]
    return {"id": "7", "image": "a.png", "conversations": turns} | changes


def write(folder, records, name="data.json"):
    path = folder / name
    if name.endswith("l"):
        path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    else:
        path.write_text(json.dumps(records))
    return path


TURNS = (Turn("user", "<image>\nWhat?"), Turn("assistant", "A ramp."))


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_llava(folder, name):
    records = [llava(source="x"), llava(id=7), {"conversations": [{"from": "system", "value": "Be brief."}]}]
    reader = LlavaJson(write(folder, records, name))
    first, second, text_only = reader
    assert (first.key, first.conversation, first.meta) == ("7", TURNS, {"id": "7", "source": "x"})
    np.testing.assert_array_equal(first.image, ramp())
    assert second.key == "7@1"
    assert (text_only.key, text_only.images, text_only.conversation[0].role) == ("2", (), "system")
    assert len(pickle.loads(pickle.dumps(reader))) == 3


def test_messages_and_images(folder):
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    records = [
        {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": parts}]},
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
        },
        {"images": [], "messages": [{"role": "user", "content": "x"}]},
    ]
    pair, single, none = LlavaJson(write(folder, records))
    assert pair.conversation == (Turn("user", "<image>and<image>"),)
    assert len(pair.images) == 2
    assert single.conversation == (Turn("user", "<image>x"), Turn("assistant", "y"))
    assert none.images == ()


def test_images_elsewhere(folder):
    (folder / "deep").mkdir()
    path = write(folder / "deep", [llava(), llava(image=str(folder / "b.png")), llava(image="../b.png")])
    assert len(list(LlavaJson(path, folder))) == 2  # absolute, but inside; the third leads out
    with pytest.raises(SampleError, match="outside the folder"):
        LlavaJson(path)[1]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "no JSON object"),
        ("text", "no JSON object"),
        (llava(conversations=None), "no list of"),
        (llava(conversations=[]), "no list of"),
        (llava(conversations=["x"]), "role None"),
        (llava(conversations=[{"from": "bing", "value": "<image>"}]), "role 'bing'"),
        (llava(conversations=[{"from": [], "value": "<image>"}]), r"role \[\]"),
        (llava(conversations=[{"from": "gpt", "value": None}]), "content 'None'"),
        (llava(conversations=[{"from": "gpt", "value": [{"type": "video"}]}]), "content 'None'"),
        (llava(image=3), "no file name"),
        (llava(image=["a.png", None]), "no file name"),
        (llava(image=""), "no file name"),
        (llava(image=["a.png", "b.png"]), "1 <image> marks for 2 images"),
        (llava(image=None), "1 <image> marks for 0 images"),
        (llava(image="none.png"), "missing file"),
    ],
)
def test_malformed_records(folder, record, reason):
    reader = LlavaJson(write(folder, [llava(id="good"), record]))
    with pytest.raises(SampleError, match=reason):
        reader[1]
    assert [sample.key for sample in reader] == ["good"]
    assert reader.faults.total == 1


def test_broken_lines_are_faults_of_their_rows(folder):
    path = write(folder, [llava(), '{"id": ', "[" * 99_999, "", llava()], "data.jsonl")
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe")
    reader = LlavaJson(path, max_fraction=1.0)
    assert [sample.key for sample in reader] == ["7", "7@3"]
    assert reader.faults.counts == {"malformed record": 3}


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3", "[" * 99_999])
def test_no_records(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        LlavaJson(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        LlavaJson(tmp_path / "none.json")


def test_written_and_read_back(folder):
    samples = [
        Sample("one", images=(ramp(),), conversation=TURNS),
        Sample("none", conversation=(Turn("system", "é"), Turn("user", "x"))),
        Sample("two", images=(ramp(), ramp(3, 3)), conversation=(Turn("user", "<image><image>"),)),
    ]
    path = folder / "out.json"
    write_llava_json(samples, path, folder / "out")
    back = list(LlavaJson(path, folder / "out"))
    for sample, again in zip(samples, back, strict=True):
        assert (again.key, again.conversation) == (sample.key, sample.conversation)
        for image, picture in zip(sample.images, again.images, strict=True):
            np.testing.assert_array_equal(image, picture)

    def dying():
        yield samples[0]
        raise KeyboardInterrupt

    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_llava_json(dying(), path, folder / "out")
    with pytest.raises(ValueError, match=r"'bad' has 0 turns and 0 <image> marks for 1 images"):
        write_llava_json([Sample("bad", images=(ramp(),))], path, folder / "out")
    assert path.read_bytes() == before
