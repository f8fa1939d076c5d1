import json

import pytest

from foveal.adapt.base_search import SearchJournal
from foveal.adapt.glov import GLOVOptimizer
from foveal.llm import ScriptedLM

REPLIES = [f"number {i} <category>" for i in range(6)]


def search(lm, journal, fitness=len, heard=None):
    model = journal.model(lm) if heard is None else journal.model(lm, heard)
    result = GLOVOptimizer(model, journal.score(fitness), "x", "y", steps=3, per_step=2).run()
    journal.save()
    return result


def test_a_stopped_search_goes_on_after_its_last_reply(tmp_path):
    path, scored = tmp_path / "journal.json", []

    def fitness(prompt):
        scored.append(prompt)
        return len(prompt)

    with pytest.raises(ValueError, match="none is left"):  # the model falls silent in the third step
        search(ScriptedLM(REPLIES[:5]), SearchJournal(path, {"seed": 0}), fitness)
    before, lm, counts = list(scored), ScriptedLM(REPLIES[5:]), []
    result = search(lm, SearchJournal(path, {"seed": 0}), fitness, counts.append)
    assert result == search(ScriptedLM(REPLIES), SearchJournal(None, {}))
    assert len(lm.calls) == 1
    assert counts == [1, 2, 3, 4, 5, 6]
    assert len(scored) == len(set(scored))
    assert before == scored[: len(before)]
    again = ScriptedLM([])
    assert search(again, SearchJournal(path, {"seed": 0}), fitness) == result
    assert not again.calls


def test_a_raised_budget_uses_what_is_there(tmp_path):
    path = tmp_path / "journal.json"
    journal = SearchJournal(path, {})
    GLOVOptimizer(journal.model(ScriptedLM(REPLIES)), len, "x", "y", steps=1, per_step=2).run()
    lm = ScriptedLM(REPLIES[2:])
    search(lm, SearchJournal(path, {}))
    assert len(lm.calls) == 4


def test_other_settings_and_other_questions_are_refused(tmp_path):
    path = tmp_path / "journal.json"
    search(ScriptedLM(REPLIES), SearchJournal(path, {"seed": 0, "model": "m"}))
    with pytest.raises(ValueError, match=r"other settings \(seed\).*another folder"):
        SearchJournal(path, {"seed": 1, "model": "m"})
    journal = SearchJournal(path, {"seed": 0, "model": "m"})
    with pytest.raises(ValueError, match="reply 1 answers another question"):
        journal.model(ScriptedLM([])).complete([{"role": "user", "content": "else"}])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", '{"settings": {}, "replies": [1], "scores": {}}', '{"settings": {}, "replies": {}}',
     '{"settings": {}, "replies": [], "scores": {"a": NaN}}', '{"settings": {}, "replies": [], "scores": []}'],
)  # fmt: skip
def test_files_that_are_no_journal(tmp_path, content):
    path = tmp_path / "journal.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"journal\.json is no journal"):
        SearchJournal(path, {})


def test_the_file_is_readable_and_passes_steering_through(tmp_path):
    class Steerable(ScriptedLM):
        steer = "what steers"

    path = tmp_path / "journal.json"
    journal = SearchJournal(path, {"seed": 0})
    assert journal.model(Steerable([])).steer == "what steers"
    assert not hasattr(journal.model(ScriptedLM([])), "steer")
    search(ScriptedLM(REPLIES), journal)
    stored = json.loads(path.read_text())
    assert [reply for _, reply in stored["replies"]] == REPLIES
    assert stored["scores"]["number 0 <category>"] == 19
