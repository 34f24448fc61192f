"""Ray workers that correct a file of histories: each reads rows of the file, and writes parts where all look for them.

This process tells a worker which rows of which file it corrects; what it gives back are counts. Parts are folders that
are whole or absent, as this process writes them (`histories_file.py`). So the part of a worker that died is made by
another one, and an interrupted call resumes with or without Ray.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm4dsr.core.manifest import DamageError, read_sealed
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.core.parquet import footer_hash
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import OutputError
from llm4dsr.pipeline.histories_file import CARD, ApplyOptions, FilePart, make_part, model_digest
from llm4dsr.pipeline.ray_workers import NAME, PART, RayWorker, RayWorkers, check_alike, check_shared, made_with
from llm4dsr.pipeline.served_model import open_model

TOLD, MEMORY = "told", "memory"  # what a worker gives back


@dataclass(frozen=True)
class RayHistories:
    """Ray workers as `histories_file.PartMakers`.

    Attributes
    ----------
    model : Path
        The folder that the denoiser was loaded from by `open_model`; each worker does the same.
    workers : RayWorkers
        Where workers run, and how many.
    """

    model: Path
    workers: RayWorkers = field(default_factory=RayWorkers)

    def make(
        self, denoiser: Denoiser, parts: Sequence[FilePart], out: Path, made_from: dict[str, Any], options: ApplyOptions
    ) -> Iterator[tuple[FilePart, dict[str, Any], int]]:
        """Yield each part as soon as a worker has written it.

        Parameters
        ----------
        denoiser : Denoiser
            As `model` holds it.
        parts : sequence of FilePart
            The parts that are missing.
        out : Path
            Folder of the parts, with a card.
        made_from : dict
            What the card tells of model, histories and options.
        options : ApplyOptions
            How histories are corrected.

        Yields
        ------
        part : FilePart
        told : dict
            What was counted in it.
        memory : int
            Largest resident size of the worker so far, in MiB.

        Raises
        ------
        ModelError
            If Ray is not installed, or a worker has another model or other versions.
        ConfigError
            If there is no cluster at the address.
        OutputError
            If a worker cannot read or write what it should, finds other files, or Ray fails.
        DataError
            If rows cannot be corrected.
        """
        here = [replace(part, path=part.path.resolve()) for part in parts]
        ends = {path: footer_hash(path) for path in dict.fromkeys(part.path for part in here)}
        expected = made_with(denoiser.ensemble)
        given = self.model.resolve(), ends, out.resolve(), made_from, options, expected, here
        tasks = [pa.table({NAME: [part.name], PART: [at]}) for at, part in enumerate(parts)]
        by_name = {part.name: part for part in parts}
        for name, answer in self.workers.answers(_HistoriesWorker, tasks, given, denoiser.config.threads or 1):
            found = json.loads(answer)
            yield by_name[name], found[TOLD], found[MEMORY]


class _HistoriesWorker(RayWorker):
    """Corrects rows of files."""

    def load(
        self,
        threads: int,
        model: Path,
        ends: dict[Path, str],
        out: Path,
        made_from: dict[str, Any],
        options: ApplyOptions,
        expected: dict[str, str],
        parts: list[FilePart],
    ) -> None:
        self.out, self.options, self.parts = out, options, parts
        for path in (model, *ends, out / CARD):
            check_shared(path)
        if changed := [path for path, end in ends.items() if footer_hash(path) != end]:
            raise _other(changed[0])
        try:
            card = read_sealed(out / CARD)
        except DamageError as error:
            raise OutputError(f"{error}. Choose another --out.") from None
        if made_from != {name: card.get(name) for name in made_from}:
            raise _other(out / CARD)
        self.denoiser = open_model(model, threads)
        check_alike(self.denoiser.ensemble, model_digest(self.denoiser) == made_from["model"], expected)

    def answer(self, task: dict[str, Any]) -> bytes:
        told = make_part(self.denoiser, self.parts[task[PART]], self.out, self.options)
        return json.dumps({TOLD: told, MEMORY: peak_memory_mb()}).encode()


def _other(path: Path) -> OutputError:
    return OutputError(
        f"A Ray worker on {platform.node()} finds another {path} than the process that started it. It must be on a "
        "disk that all machines of the cluster share, under the same path."
    )
