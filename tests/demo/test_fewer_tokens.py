"""Budgets of visual tokens: nothing changes at 100 %, patches go below it, and what is reported is what was read."""

import pytest
import torch

from foveal.compress.fopru import FoPru
from foveal.demo import fewer_tokens
from foveal.demo.fewer_tokens import SHARES, compare_budgets
from foveal.demo.host import Host, Spoken
from foveal.evaluate.tasks.captions import PROMPT


@pytest.fixture(scope="module")
def found(host, shown):
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewer_tokens, "LONG", 12)
        result = compare_budgets(host, shown, 0, 1, lambda what, done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(7)]
    return result


def test_all_tokens_say_what_the_untouched_model_says(host, shown, found):
    for looked, view in zip(found.looked, shown, strict=True):
        for asked in looked.asked:
            plain = host.say(host.inputs([view.small], [asked.prompt]), 16 if asked.accepted else 12).texts[0]
            assert asked.replies[0].text == plain
    said = {reply.text for looked in found.looked for asked in looked.asked for reply in asked.replies}
    assert len(said) > 6  # else the toy could not tell


def test_what_is_kept_and_what_it_costs(found):
    assert (found.side, len(found.looked)) == (4, 2)
    for looked in found.looked:
        assert [asked.kind for asked in looked.asked][0::2] == ["colour", "description"]
        for asked in looked.asked:
            assert [reply.share for reply in asked.replies] == list(SHARES)
            assert [len(reply.kept) for reply in asked.replies] == [16, 8, 4, 2]
            for more, fewer in zip(asked.replies, asked.replies[1:], strict=False):
                assert set(fewer.kept) < set(more.kept)
                assert fewer.flops < more.flops
            assert asked.replies[0].kept == tuple(range(16))
            assert asked.replies[0].flops == pytest.approx(1.05, abs=0.05)  # the choice itself is counted


def test_the_kept_patches_are_those_of_the_prompt_that_was_read(host, shown, found):
    inputs = host.inputs([shown[0].small], [PROMPT])
    with FoPru(0.25).attached(host.model) as reducer:
        host.say(inputs, 1)
    first = (inputs["input_ids"][0] == host.model.config.image_token_id).nonzero()[0, 0]
    columns = [int(column) for column in reducer.kept[0][0] if first <= column < first + 16]
    assert found.looked[0].asked[-1].replies[2].kept == tuple(column - int(first) for column in columns)


def test_patches_are_counted_among_image_tokens(host):
    image = host.model.config.image_token_id
    ids = torch.tensor([1, 9, image, image, image, image, 7])
    assert host.patches(ids, torch.tensor([0, 1, 3, 5, 6])) == (1, 3)


def test_nothing_stays_on_the_model(host, found):
    assert not hasattr(host.model.model, "_foveal_reducer")
    assert "get_image_features" not in vars(host.model.model)


def test_answers_are_judged(host, shown, monkeypatch):
    real = Host.say
    items = fewer_tokens.quiz(0, 4)
    (answer,) = items[0].truth["accepted"]

    def scripted(self, inputs, longest, processors=()):
        real(self, inputs, 1)
        return Spoken([f"{answer.capitalize()}." if longest == 16 else "A zebra"] * len(inputs["input_ids"]), 1)

    monkeypatch.setattr(Host, "say", scripted)
    found = compare_budgets(host, shown, 0, 4, lambda *_: None)
    for looked, view in zip(found.looked, shown, strict=True):
        colour, _, description = looked.asked
        assert {reply.right for reply in colour.replies} == {view.questions[0].answers == (answer,)}
        assert {(reply.right, reply.invented) for reply in description.replies} == {(None, ("zebra",))}
    right = sum(item.truth["accepted"] == [answer] for item in items) / 8
    assert 0 < right < 1
    assert [budget.right.value for budget in found.budgets] == [right] * 4
    assert found.budgets[0].questions == 8
    assert all(budget.right.low < right < budget.right.high for budget in found.budgets)


def test_chance_keeps_other_patches(host, shown, monkeypatch):
    seen = []
    real = Host.say

    def watched(self, inputs, longest, processors=()):
        spoken = real(self, inputs, 1, processors)
        reducer = self.model.model._foveal_reducer
        seen.append((type(reducer).__name__, [rows[-1].tolist() for rows in reducer.kept]))
        return spoken

    monkeypatch.setattr(Host, "say", watched)
    compare_budgets(host, [], 0, 2, lambda *_: None)
    assert [name for name, _ in seen] == ["FoPru", *("FoPru", "RandomDrop") * 3]
    for (_, ours), (_, chance) in zip(seen[1::2], seen[2::2], strict=True):
        assert [len(row) for row in ours] == [len(row) for row in chance]
        assert ours != chance
