"""Threads: as many as the process may use, and restored after single-threaded work."""

import os

import pytest
import torch

from llm4dsr.core.device import available_cpus, single_thread, use_threads


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
