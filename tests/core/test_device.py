"""Threads: as many as the process may use, and restored after single-threaded work."""

import os

import pytest
import torch

from llm4dsr.core.device import available_cpus, fp32_weights, single_thread, use_threads


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
