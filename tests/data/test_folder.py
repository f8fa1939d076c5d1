import pickle

import numpy as np
import pytest

from foveal.data.faults import SampleError
from foveal.data.folder import ImageFolder

from .pictures import encoded, ramp


@pytest.fixture
def root(tmp_path):
    for name in ("cat/1.png", "cat/old/2.PNG", "dog/1.png", "top.png", "cat/1.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(ramp()))
    (tmp_path / "cat" / "1.txt").write_text("\ufeffa cat\n\n  its other caption \n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_labels_captions_and_keys(root):
    reader = ImageFolder(root)
    assert [sample.key for sample in reader] == ["cat/1.png", "cat/1.webp", "cat/old/2.PNG", "dog/1.png", "top.png"]
    assert [sample.labels for sample in reader] == [("cat",), ("cat",), ("cat",), ("dog",), ()]
    assert reader.classes == ["cat", "dog"]
    assert reader[0].captions == ("a cat", "its other caption")
    assert reader[3].captions == ()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[-1].image, ramp())


def test_captions_that_are_no_text(root):
    (root / "dog" / "1.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SampleError, match=r"dog/1\.txt: .*save it as UTF-8"):
        ImageFolder(root)[3]


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="holds no image file"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="is missing"):
        ImageFolder(tmp_path / "none")
