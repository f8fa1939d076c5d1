import pytest
import torch

from foveal.nn.text import TextTransformer, at_end_token

torch.set_num_threads(1)
END = 19


def text(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextTransformer(7, 20, 8, 2, 2, **options)


IDS = torch.tensor([[3, 4, END, 0, 0], [5, END, 0, 0, 0]])


def test_end_token_is_the_first_of_the_largest_id():
    tokens = torch.arange(10.0).view(2, 5, 1)
    assert at_end_token(tokens, IDS).flatten().tolist() == [2, 6]
    assert at_end_token(tokens, torch.tensor([[END] * 5, [1, 2, END, END, END]])).flatten().tolist() == [0, 7]


def test_causal_text_ignores_what_follows_the_end():
    model, other = text(output_dim=5), IDS.clone()
    other[0, 3:], other[1, 2:] = 11, END
    assert model(IDS).shape == (2, 5)
    assert torch.equal(model(IDS), model(other))
    torch.testing.assert_close(model(IDS), model(IDS[:, :3]))
    assert not torch.allclose(model(IDS), model(torch.tensor([[4, 3, END, 0, 0], [6, END, 0, 0, 0]])))


def test_bidirectional_text_sees_everything_but_padding():
    model, other = text(causal=False), IDS.clone()
    other[0, 3:], other[1, 2:] = 11, 12
    mask = (IDS > 0).long()
    assert model(IDS).shape == (2, 8)
    assert not torch.allclose(model(IDS), model(other))
    torch.testing.assert_close(model(IDS, mask), model(other, mask))
    torch.testing.assert_close(model(IDS[1:], mask[1:]), model(IDS[1:, :2]))


def test_bad_input():
    for shape in ((2, 8), (2, 0), (7,)):
        with pytest.raises(ValueError, match=r"token_ids.*context_length=7"):
            text()(torch.ones(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="vocab_size=0"):
        TextTransformer(7, 0, 8, 1, 2)
