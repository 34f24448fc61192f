"""The file of answers: nothing answered is lost."""

import resource
import signal

import pytest

from llm4dsr.errors import OutputError
from llm4dsr.review.answers import Answer, Answers


def test_answers_outlive_the_process_and_can_be_undone(tmp_path):
    first, second = Answer("train", 3, 1, "noise"), Answer("test", 4, 0, "fits")
    answers = Answers(tmp_path, "abc")
    answers.add([first])
    answers.add([second])
    assert answers.undo() == [second]
    answers.add([Answer("train", 3, 1, "fits")])  # a change of mind
    answers.close()
    again = Answers(tmp_path, "abc")
    assert again.current == answers.current == {first.key: Answer("train", 3, 1, "fits")}
    assert again.labels().select("split", "window_id", "position", "is_noise").rows() == [("train", 3, 1, 0)]
    assert again.undo()
    again.close()
    assert Answers(tmp_path, "abc").current == {first.key: first}


@pytest.mark.parametrize("cut_off", [1, 7])  # also where only the line's end is missing
def test_the_answer_of_a_crash_is_asked_again(tmp_path, caplog, cut_off):
    answers = Answers(tmp_path, "abc")
    answers.add([Answer("train", 3, 1, "noise")])
    whole = answers.path.read_bytes()
    answers.add([Answer("train", 5, 1, "noise")])
    answers.close()
    answers.path.write_bytes(answers.path.read_bytes()[:-cut_off])
    cut = Answers(tmp_path, "abc")
    assert list(cut.current) == [("train", 3, 1)]
    assert "incomplete" in caplog.text
    cut.add([Answer("train", 7, 1, "fits")])
    assert answers.path.read_bytes().startswith(whole)
    cut.close()
    assert list(Answers(tmp_path, "abc").current) == [("train", 3, 1), ("train", 7, 1)]


def test_an_answer_that_a_full_disk_cut_off_takes_no_other_with_it(tmp_path):
    """A limit on the size of files, which lets a part of a line through, as a full disk does."""
    answers = Answers(tmp_path, "abc")
    answers.add([Answer("train", 3, 1, "noise")])
    whole, former = answers.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, former[1]))
        with pytest.raises(OutputError, match=r"answers|review"):
            answers.add([Answer("train", 5, 1, "noise")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, ignored)
    assert answers.path.read_bytes() == whole
    answers.add([Answer("train", 7, 1, "fits")])
    answers.close()
    assert list(Answers(tmp_path, "abc").current) == [("train", 3, 1), ("train", 7, 1)]


def test_a_damaged_line_is_named(tmp_path):
    answers = Answers(tmp_path, "abc")
    answers.add([Answer("train", 3, 1, "noise")])
    answers.add([Answer("train", 5, 1, "noise")])
    answers.close()
    lines = answers.path.read_text().splitlines()
    answers.path.write_text("\n".join([lines[0], lines[1][:-4], lines[2], ""]))
    with pytest.raises(OutputError, match=r"Line 2 of .* is damaged"):
        Answers(tmp_path, "abc")


def test_answers_about_other_windows_are_refused(tmp_path):
    answers = Answers(tmp_path, "abc")
    answers.add([Answer("train", 3, 1, "noise")])
    answers.close()
    with pytest.raises(OutputError, match="other windows"):
        Answers(tmp_path, "xyz")


def test_one_process_reviews_a_run(tmp_path):
    """Else one would undo the answers of the other."""
    answers = Answers(tmp_path, "abc")
    with pytest.raises(OutputError, match="reviewed by another process"):
        Answers(tmp_path, "abc")
    answers.close()
    Answers(tmp_path, "abc").close()


def test_skipped_ones_are_no_labels(tmp_path):
    answers = Answers(tmp_path, "abc")
    answers.add([Answer("train", 1, 0, "skip"), Answer("train", 1, 1, "atypical"), Answer("train", 1, 2, "noise")])
    assert answers.labels()["is_noise"].to_list() == [0, 1]
    assert answers.labels()["answer"].to_list() == ["atypical", "noise"]
