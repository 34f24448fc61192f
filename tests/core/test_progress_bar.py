"""Progress for people: lines in a log, bars in a notebook, nothing where none is wanted."""

import re
import time

from llm4dsr.core import progress_bar


def test_progress_in_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.02)
    with progress_bar.shown(True) as report:
        for done in range(0, 200, 20):
            report(done, 200, "score")
            time.sleep(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"score: \d+/200 \(\d+%\), [\d.]+/(s|min), elapsed 0:00, left (0:\d\d|unknown)", line), line


def test_a_step_that_starts_again_has_no_negative_rate():
    step = progress_bar._Step()
    step.update(90, 100, "calibrate")
    step.update(5, 100, "calibrate")
    assert "-" not in step.line()
    assert step.line().startswith("calibrate: 5/100 (5%), ")


def test_a_callback_is_used_as_it_is_and_none_shows_nothing():
    with progress_bar.shown(print) as report:
        assert report is print
    for nothing in (None, False):
        with progress_bar.shown(nothing) as report:
            assert report is None
