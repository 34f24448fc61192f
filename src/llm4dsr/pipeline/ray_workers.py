"""Ray workers: processes on this machine or on many, and what they make ahead of a stage.

Ray Data moves tasks to the workers, and their answers back. It gives the task of a worker that died to another one.

A stage scores and suggests in parts, which are kept in a folder under a hash of everything they depend on. Workers
make the parts that are missing. Then the stage itself runs as always and finds them. So its tables have the same bytes
whoever made the parts, and an interrupted stage resumes with or without Ray. Tables come back as Parquet; this process
alone writes. Workers for a file of histories are in `ray_histories.py`.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from llm4dsr import errors
from llm4dsr.core.cache import PartCache, content_of
from llm4dsr.core.device import available_cpus, has_amx, use_threads
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.progress import Progress
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.storage import load_denoiser
from llm4dsr.errors import ConfigError, LLM4DSRError, ModelError, OutputError, first_line
from llm4dsr.features.cooccurrence import CooccurrenceCounts

NAME, COUNTS, PART = "name", "counts", "part"  # columns of a task: its name, and places in lists of what Ray stores
ANSWER, KIND, ERROR = "answer", "kind", "error"  # columns of what a worker gives back, beside the name
CONNECT_SECONDS = 10.0  # to wait for a cluster to answer
SCHEMA = pa.schema([(NAME, pa.string()), (ANSWER, pa.binary()), (KIND, pa.string()), (ERROR, pa.string())])


class Part(Protocol):
    """A part of a stage: `ScorePart` or `SuggestPart`."""

    @property
    def size(self) -> int:
        """Units of work, for progress."""

    def key(self, ensemble: Ensemble, cache: PartCache) -> tuple[Any, ...]:
        """Return all that its table depends on."""

    def table(self, ensemble: Ensemble) -> Any:
        """Compute its table."""


Parts = Iterable[tuple[Ensemble, Part]]  # each with the ensemble that knows the counts of its time


@dataclass(frozen=True)
class RayWorkers:
    """Where workers run, and how many.

    Attributes
    ----------
    address : str or None
        Of a running cluster, such as "10.0.0.1:6379", or "auto". Its machines need the same versions of all libraries,
        and the folders that are used under the same path. None: Ray is started on this machine, out of reach of others.
    count : int or None
        Workers. Default: one for each GPU of the cluster, else for each core (or for so many cores as `threads` says).
    """

    address: str | None = None
    count: int | None = None

    def make(
        self,
        ensemble: Ensemble,
        parts: Parts,
        model: Path,
        work: Path,
        doing: str,
        progress: Progress | None = None,
    ) -> None:
        """Make all parts that are missing.

        Parameters
        ----------
        ensemble : Ensemble
            What the model folder holds.
        parts : iterable of (Ensemble, Part)
            The parts; each ensemble differs from `ensemble` in its counts alone.
        model : Path
            The folder of the saved denoiser, which each worker reads once.
        work : Path
            Folder of finished parts. Each is kept there as soon as it comes back.
        doing : str
            What is being done, for progress.
        progress : Progress, optional
            Called with (work done, all work, what is being done).

        Raises
        ------
        ModelError
            If Ray is not installed, or a worker has another model or other versions.
        ConfigError
            If there is no cluster at the address.
        OutputError
            If a worker cannot read the model folder, or Ray fails.
        """
        threads, cache = ensemble.config.threads or 1, PartCache(work)
        own = _fingerprint(ensemble.counts)
        at, counts, sizes, tasks, stored = {own: 0}, [None], dict[str, int](), list[pa.Table](), list[Any]()
        if progress:
            progress(0, 0, f"{doing}: find what is missing")
        for by_then, part in parts:
            name = digest(*part.key(by_then, cache))
            if name in sizes or cache.has(name):
                continue
            ray = self._connected(threads)
            if (known := _fingerprint(by_then.counts)) not in at:
                at[known] = len(counts)
                assert by_then.counts is not None
                counts.append(ray.put(replace(by_then.counts, vectors=None)))  # a worker has the vectors
            sizes[name] = part.size
            tasks.append(pa.table({NAME: [name], COUNTS: [at[known]], PART: [len(stored)]}))
            stored.append(ray.put(part))
        if not tasks:
            return
        given = (str(model.resolve()), ensemble.fingerprint, made_with(ensemble), counts, stored)
        done, total = 0, sum(sizes.values())
        if progress:
            progress(0, total, doing)
        for name, table in self.answers(_PartWorker, tasks, given, threads):
            cache.keep(name, table)
            done += sizes[name]
            if progress:
                progress(done, total, doing)

    def answers(
        self, worker: type[RayWorker], tasks: list[pa.Table], given: tuple[Any, ...], threads: int
    ) -> Iterator[tuple[str, bytes]]:
        """Let workers do tasks.

        Parameters
        ----------
        worker : type of RayWorker
            Made once in each process.
        tasks : list of Table
            One row each, with a name.
        given : tuple
            What each worker loads.
        threads : int
            Cores of each worker.

        Yields
        ------
        name : str
            Of the task that is done.
        answer : bytes

        Raises
        ------
        ModelError, ConfigError, OutputError
            As in `make`, and what a worker raises.
        """
        ray = self._connected(threads)
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        count = min(self.count or gpus or max(1, cpus // threads), len(tasks))
        made = ray.data.from_arrow_refs([ray.put(task) for task in tasks]).map_batches(
            worker,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_constructor_args=(threads, *given),
            # A worker holds the next task while it works, and no more: the last tasks are spread over all.
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
        )
        try:
            for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    if row[ERROR] is not None:
                        raise _error(row)
                    yield row[NAME], row[ANSWER]
        except ray.exceptions.RayTaskError:
            raise  # a fault of ours: its traceback is what is needed
        except ray.exceptions.RayError as error:
            raise OutputError(
                f"Ray failed: {first_line(error)} Finished parts are kept. Repeat the command to resume."
            ) from None

    def _connected(self, threads: int) -> Any:
        """The library, after it has joined the cluster, or started Ray here, unless this process did already."""
        ray = _imported(self.address)
        if ray.is_initialized():
            return ray
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with _own_signals():
            if self.address is None:
                cores = max(available_cpus(), (self.count or 1) * threads)
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **how)
            else:
                try:
                    _check_port(self.address)
                    ray.init(address=self.address, **how)
                except (OSError, ValueError, RuntimeError) as error:
                    raise ConfigError(
                        f"There is no Ray cluster at --address {self.address}: {first_line(error)}. Start one:  ray "
                        "start --head  on one machine, and  ray start --address …  on the others."
                    ) from None
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours shows what is done
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return ray


def _check_port(address: str) -> None:
    """Raise an OSError if nothing answers at host:port; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's way to end on SIGTERM, which Ray would replace."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class RayWorker(ABC):
    """A process that loads something once, and does one task after another.

    An error for people is given back with the next task: raised, Ray would start the worker again and again.
    """

    def __init__(self, threads: int, *given: Any) -> None:
        self.error: LLM4DSRError | None = None
        use_threads(threads)
        try:
            self.load(threads, *given)
        except LLM4DSRError as error:
            self.error = error

    @abstractmethod
    def load(self, threads: int, *given: Any) -> None:
        """Load what `RayWorkers.answers` was given."""

    @abstractmethod
    def answer(self, task: dict[str, Any]) -> bytes:
        """Do a task."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the answer to the task of a block, or the error."""
        (task,) = block.to_pylist()
        out: dict[str, list[Any]] = {NAME: [task[NAME]], ANSWER: [None], KIND: [None], ERROR: [None]}
        if self.error is None:
            try:
                return pa.table(out | {ANSWER: [self.answer(task)]}, schema=SCHEMA)
            except LLM4DSRError as error:
                self.error = error
        return pa.table(out | {KIND: [type(self.error).__name__], ERROR: [str(self.error)]}, schema=SCHEMA)


class _PartWorker(RayWorker):
    """Makes parts of stages."""

    def load(
        self,
        threads: int,
        folder: str,
        fingerprint: str,
        expected: dict[str, str],
        counts: list[Any],
        parts: list[Any],
    ) -> None:
        self.counts, self.parts, self.at = counts, parts, 0
        check_shared(Path(folder))
        self.own, _ = load_denoiser(Path(folder))  # every file is checked
        check_alike(self.own, self.own.fingerprint == fingerprint, expected)
        self.ensemble = self.own

    def answer(self, task: dict[str, Any]) -> bytes:
        import ray

        return content_of(ray.get(self.parts[task[PART]]).table(self._by_then(task[COUNTS])))

    def _by_then(self, at: int) -> Ensemble:
        """The ensemble with the counts of a part; 0: those of the model folder."""
        if at != self.at:
            import ray

            vectors = self.own.counts and self.own.counts.vectors
            counts = replace(ray.get(self.counts[at]), vectors=vectors) if at else self.own.counts
            self.at, self.ensemble = at, self.own.with_counts(counts)
        return self.ensemble


def _error(row: dict[str, Any]) -> LLM4DSRError:
    """The error that a worker gave back."""
    error: LLM4DSRError = getattr(errors, row[KIND])(row[ERROR])
    return error


def check_shared(path: Path) -> None:
    """Raise OutputError if a worker does not see a file or folder of the process that started it."""
    if not path.exists():
        raise OutputError(
            f"A Ray worker on {platform.node()} cannot read {path}. It must be on a disk that all machines of the "
            "cluster share, under the same path."
        )


def check_alike(ensemble: Ensemble, is_same_model: bool, expected: dict[str, str]) -> None:
    """Raise ModelError if a worker has another model, or other versions than `made_with` tells elsewhere."""
    here = made_with(ensemble)
    if not is_same_model or here != expected:
        other = [f"{name} {here.get(name, 'absent')}, not {expected.get(name, 'absent')}"
                 for name in {**expected, **here} if here.get(name) != expected.get(name)]  # fmt: skip
        raise ModelError(
            f"A Ray worker on {platform.node()} would give other numbers: it has {'; '.join(other) or 'another model'}."
            " Install the same versions on all machines, with GPUs (for bf16 also AMX) on all or on none."
        )


def made_with(ensemble: Ensemble) -> dict[str, str]:
    """Return the versions, and for bf16 whether the CPU has AMX, which rounds in another way."""
    return versions() | ({"AMX": str(has_amx())} if ensemble.config.model.dtype == "bf16" else {})


def _fingerprint(counts: CooccurrenceCounts | None) -> str:
    return "" if counts is None else counts.fingerprint


def _imported(address: str | None) -> Any:
    """The library, without usage statistics; what it starts here listens on the loopback interface alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs what it recovers from as errors
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: no cluster, so 127.0.0.1
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ModelError(
            f"The engine ray needs {error.name}, which is not installed:  pip install 'llm4dsr[ray]'"
        ) from None
    return ray
