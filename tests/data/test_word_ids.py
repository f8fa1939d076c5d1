import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.word_ids import PAD, UNKNOWN, WordIds

WORDS = WordIds.of(["A red star, and a ring.", "two rings"])


def test_ids_pad_on_the_right_and_end_with_the_largest():
    ids = WORDS.encode(["a red ring", "star"])
    assert ids.shape == (2, 4)
    assert ids.argmax(1).tolist() == [3, 1]
    assert ids[1, 2:].tolist() == [PAD, PAD]
    assert ids.max() == WORDS.end == len(WORDS) - 1
    assert WORDS.encode(["blue star"])[0, 0] == UNKNOWN


@given(st.lists(st.sampled_from(WORDS.words), max_size=8))
def test_decoding_gives_the_words_back(words):
    ids = WORDS.encode([" ".join(words)], length=9)
    assert WORDS.decode(ids[0]) == " ".join(words)
    assert len(np.unique(ids)) <= len(words) + 2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="length=2"):
        WORDS.encode(["a red ring"], length=2)
    with pytest.raises(ValueError, match="no words"):
        WordIds.of(["..."])
