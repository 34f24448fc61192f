"""A path that the system refuses ends a command with one message."""

import sys

import pytest

from llm4dsr.cli.main import main


@pytest.mark.parametrize("arguments", [["run", "--data", "x", "--out", "y", "--config"], ["train", "--run"],
                                       ["data", "describe"], ["data", "validate"]])  # fmt: skip
def test_a_path_that_is_too_long(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llm4dsr", *arguments, "x" * 5000])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code in (2, 3, 5, 6)
    assert printed.out + printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not any(tmp_path.iterdir())


def test_an_argument_that_is_not_utf_8(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["llm4dsr", "prepare", "--data", str(tmp_path), "--out", f"{tmp_path}/\udcff"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "\\udcff is not UTF-8. Give another name." in capsys.readouterr().err
