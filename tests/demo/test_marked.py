"""Words of a description that name what is there, and what is not."""

import pytest

from foveal.demo.marked import Piece, invented, marked


def test_pieces_add_up_and_know_what_is_there():
    text = 'Two dogs and a palm tree beside a tennis ball; it says "BOOK".'
    pieces = marked(text, ["dog", "tree"])
    assert "".join(piece.text for piece in pieces) == text
    assert [piece for piece in pieces if piece.kind] == [
        Piece("dogs", "there"),
        Piece("palm tree", "there"),  # some people would call a palm a tree
        Piece("tennis ball", "invented"),
    ]
    assert invented(text, ["dog", "tree"]) == ["tennis ball"]


@pytest.mark.parametrize("text", ["", "nothing here", "dog", "İ dog"])
def test_any_text(text):
    pieces = marked(text, [])
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.text for piece in pieces if piece.kind] == (["dog"] if "dog" in text else [])


def test_each_invention_once():
    assert invented("a cat, a dog, two cats", ["dog"]) == ["cat"]
