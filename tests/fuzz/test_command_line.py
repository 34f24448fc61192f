"""A sample of the cases that `python -m tests.fuzz.command_line` runs by hand."""

import os
import random

import pytest

from .command_line import Place, cases, commands, fault

SAMPLE = 80


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = os.getcwd()
    yield Place.make(tmp_path_factory.mktemp("place"))
    os.chdir(here)


def test_odd_arguments_end_with_a_message_and_a_documented_code(place):
    """Never a traceback, and nothing half written."""
    every = cases(place.folder)
    assert len(every) > 1500
    found = {" ".join(arguments): fault(arguments, place) for arguments in random.Random(0).sample(every, SAMPLE)}
    assert {arguments: wrong for arguments, wrong in found.items() if wrong} == {}


def test_all_commands_are_among_the_cases(tmp_path):
    every = [tuple(arguments) for arguments in cases(tmp_path)]
    for names, _ in commands():
        assert sum(arguments[: len(names)] == names for arguments in every) >= 3
