import sys

import pytest

from foveal.train import progress


@pytest.mark.parametrize(
    ("terminal", "active", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_bar_only_for_those_who_watch(monkeypatch, capsys, terminal, active, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich itself draw anywhere
    with progress.ProgressBar(10, active) as bar:
        bar.update(3, 0.125)
    captured = capsys.readouterr()
    assert "loss 0.1250" in captured.err if shown else captured.err == ""
    assert captured.out == ""


def test_short_runs_stay_silent(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.ProgressBar(10, True) as bar:
        bar.update(10, 0.125)
    assert capsys.readouterr().err == ""
