"""The queue: what waits together is computed together, nothing accepted is lost, and one failure stays one failure."""

import threading
from concurrent.futures import CancelledError

import pytest

from llm4dsr.serve.batching import Batcher, ClosedError, QueueFullError


class Recorder:
    """Doubles numbers, refuses negative ones, and keeps each batch. Computes once it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may = threading.Event(), threading.Event()

    def __call__(self, numbers):
        self.begun.set()
        assert self.may.wait(30)
        self.batches.append(list(numbers))
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


@pytest.fixture
def recorder():
    return Recorder()


def busy(recorder, **options) -> tuple[Batcher, object]:
    """A queue whose thread computes the number 0, until it may go on."""
    batcher = Batcher(recorder, **{"wait": 0, "batch": 4, "queue": 6} | options)
    first = batcher.submit(0, 1)
    assert recorder.begun.wait(30)
    return batcher, first


def test_what_waits_is_computed_together_up_to_the_size_of_a_batch(recorder):
    batcher, first = busy(recorder)
    futures = [batcher.submit(number, 1) for number in range(1, 7)]
    assert batcher.size == 6
    recorder.may.set()
    assert [f.result(30) for f in (first, *futures)] == [0, 2, 4, 6, 8, 10, 12]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert batcher.size == 0
    batcher.close()


def test_a_full_batch_does_not_wait_for_more(recorder):
    recorder.may.set()
    batcher = Batcher(recorder, wait=1_000, batch=3, queue=9)
    futures = [batcher.submit(number, 1) for number in (1, 2, 3)]
    assert [f.result(30) for f in futures] == [2, 4, 6]
    assert recorder.batches == [[1, 2, 3]]
    batcher.close()


def test_a_batch_that_is_not_full_is_computed_once_its_time_has_come(recorder):
    recorder.may.set()
    batcher = Batcher(recorder, wait=0.01, batch=100, queue=100)
    assert batcher.submit(1, 1).result(30) == 2
    batcher.close()


def test_a_large_request_is_computed_alone(recorder):
    batcher, _ = busy(recorder, queue=100)
    futures = [batcher.submit(number, size) for number, size in ((1, 2), (2, 50), (3, 2))]
    recorder.may.set()
    assert [f.result(30) for f in futures] == [2, 4, 6]
    assert recorder.batches == [[0], [1], [2], [3]]
    batcher.close()


def test_more_than_the_queue_holds_is_refused(recorder):
    batcher, _ = busy(recorder)
    batcher.submit(1, 5)
    with pytest.raises(QueueFullError):
        batcher.submit(2, 2)
    last = batcher.submit(3, 1)
    recorder.may.set()
    assert last.result(30) == 6
    batcher.close()


def test_an_empty_queue_takes_a_request_of_any_size(recorder):
    recorder.may.set()
    batcher = Batcher(recorder, wait=0, batch=4, queue=6)
    assert batcher.submit(1, 500).result(30) == 2
    batcher.close()


def test_one_failure_does_not_take_its_batch_with_it(recorder):
    batcher, _ = busy(recorder)
    futures = [batcher.submit(number, 1) for number in (1, -1, 3)]
    recorder.may.set()
    assert (futures[0].result(30), futures[2].result(30)) == (2, 6)
    with pytest.raises(ValueError, match="negative"):
        futures[1].result(30)
    assert batcher.submit(5, 1).result(30) == 10
    batcher.close()


def test_nothing_is_computed_for_those_who_left(recorder):
    batcher, _ = busy(recorder)
    left, stayed = batcher.submit(1, 1), batcher.submit(2, 1)
    assert left.cancel()
    recorder.may.set()
    assert stayed.result(30) == 4
    assert recorder.batches == [[0], [2]]
    with pytest.raises(CancelledError):
        left.result(30)
    batcher.close()


def test_closing_finishes_what_was_accepted(recorder):
    batcher, _ = busy(recorder)
    futures = [batcher.submit(number, 1) for number in (1, 2, 3)]
    closer = threading.Thread(target=batcher.close)
    recorder.may.set()
    closer.start()
    closer.join(30)
    assert [f.result(0) for f in futures] == [2, 4, 6]
    assert not batcher.is_alive
    with pytest.raises(ClosedError):
        batcher.submit(4, 1)
