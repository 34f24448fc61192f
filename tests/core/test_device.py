"""Threads: as many as the process may use, and restored after single-threaded work. What does not fit is halved."""

import logging
import os

import pytest
import torch

from llm4dsr.core.device import (
    available_cpus,
    fp32_weights,
    in_parts,
    precision,
    random_state,
    single_thread,
    use_threads,
)
from llm4dsr.errors import ModelError


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_the_cores_of_the_process_are_used(threads):
    """Bound to one core of the machine, as by taskset or a container."""
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert available_cpus() == 1
        torch.set_num_threads(2)
        use_threads(0)
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert available_cpus() == len(cores)
    use_threads(3)
    assert torch.get_num_threads() == 3


def test_a_single_thread_is_for_the_block_alone(threads):
    torch.set_num_threads(3)
    inside = []

    @single_thread()
    def fail() -> None:
        inside.append(torch.get_num_threads())
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert torch.get_num_threads() == 3
    assert inside == [1, 1]


def test_half_precision_weights_are_fp32_inside_the_block_and_rounded_after_it():
    tied = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    model = torch.nn.ModuleList([tied, torch.nn.Linear(2, 2, bias=False)])
    model.append(torch.nn.Linear(2, 2, bias=False))
    model[2].weight = tied.weight
    parameters = list(model.parameters())
    with fp32_weights(parameters):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        tied.weight.data.fill_(1.0)
        for _ in range(8):
            tied.weight.data += 0.002  # below half the resolution of bf16 at 1, which is 0.0078
    assert [p.dtype for p in parameters] == [torch.bfloat16, torch.float32]
    assert model[2].weight is tied.weight
    assert (tied.weight > 1).all()


def test_slices_that_do_not_fit_are_halved_and_each_row_comes_once(caplog):
    """Slices of 8 rows; the allocator refuses more than 3."""

    def run(part: slice) -> list[int]:
        if part.stop - part.start > 3:
            raise MemoryError
        return list(range(part.start, part.stop))

    with caplog.at_level(logging.WARNING, "llm4dsr"):
        found = [rows for _, rows in in_parts([slice(0, 8), slice(8, 13)], run, "rows")]
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12]]  # all smaller from then on
    assert caplog.messages == [
        "Out of memory: 4 rows at a time from now on, instead of 8.",
        "Out of memory: 2 rows at a time from now on, instead of 4.",
    ]


def test_a_single_row_that_does_not_fit_is_an_error_for_people():
    def run(part: slice) -> None:
        raise MemoryError

    with pytest.raises(ModelError, match="single one of the rows"):
        list(in_parts([slice(0, 2)], run, "rows"))


def test_a_random_state_is_restored():
    torch.manual_seed(1)
    restore = random_state()
    first = torch.rand(3)
    restore()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("dtype", "amx", "multiplied_in"),
    [("bf16", True, torch.bfloat16), ("bf16", False, torch.float32), ("fp32", True, torch.float32)],
)
def test_a_cpu_multiplies_in_bf16_if_asked_and_if_it_can(monkeypatch, dtype, amx, multiplied_in):
    monkeypatch.setattr("llm4dsr.core.device.has_amx", lambda: amx)
    with precision(dtype, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == multiplied_in
