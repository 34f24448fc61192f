"""The service under load: throughput, latency, and whether each of 100,000 requests gets its own answer.

    taskset -c 0,1 python benchmarks/serve.py --scratch DIR --out benchmarks/results/serve

Fits the denoiser of the README's demo into DIR, unless it is there, and serves it with one thread. The load comes from
this process over loopback. Each request carries one history of 3 to 6 items that no other request has. Its answer is
compared with `Denoiser.score` of that history.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llm4dsr import Config, Denoiser
from llm4dsr.core.device import available_cpus
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.demo import make_demo

PORT = 8473
SEQUENTIAL, CLIENTS, REQUESTS = 500, 128, 100_000
LOADS, SECONDS = (0.25, 0.5, 0.75), 10  # fractions of the throughput, and how long each is offered
TOLERANCE = 1e-5  # of log-odds, as docs/how-to/serve.md states it


def demo_denoiser(folder: Path) -> Denoiser:
    """The denoiser of the demo, fitted once."""
    if not (folder / "denoiser.json").is_file():
        demo = make_demo(seed=0).data
        Denoiser(Config.from_yaml("demo")).fit(demo.splits["train"], demo.catalogue).save_pretrained(folder)
    return Denoiser.from_pretrained(folder)


def make_histories(denoiser: Denoiser, count: int) -> list[list[int]]:
    """Different histories of 3 to 6 items."""
    rng, ids = np.random.default_rng(0), denoiser.catalogue.ids.to_numpy()
    out: dict[tuple[int, ...], None] = {}
    while len(out) < count:
        items = rng.integers(0, len(ids), (count, 6))
        for row, size in zip(ids[items].tolist(), rng.integers(3, 7, count).tolist(), strict=True):
            out.setdefault(tuple(row[:size]))
    return [list(history) for history in out][:count]


class Client:
    """One keep-alive connection."""

    async def open(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", PORT)
        return self

    async def post(self, user: int, items: list[int]) -> tuple[int, bytes]:
        """Send one history, and return status and body."""
        history = {"user_id": f"user {user}", "item_ids": items}
        body = json.dumps({"histories": [history], "policy": "probability", "eta": 0.5, "action": "drop"}).encode()
        self._writer.write(
            b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
            + str(len(body)).encode() + b"\r\n\r\n" + body
        )  # fmt: skip
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


class Load:
    """What was sent, and what came back."""

    def __init__(self, histories: list[list[int]]) -> None:
        self.histories, self.seconds = histories, np.full(len(histories), np.nan)
        self.answers: list[list[float] | None] = [None] * len(histories)
        self.lost, self.mixed_up, self.wall, self.cpu = 0, 0, 0.0, float("nan")

    async def one(self, client: Client, number: int, since: float | None = None) -> None:
        """Send one request. Its latency counts from when it was due."""
        started = time.perf_counter() if since is None else since
        status, body = await client.post(number, self.histories[number])
        self.seconds[number] = time.perf_counter() - started
        if status != 200:
            self.lost += 1
            return
        (answer,) = json.loads(body)["histories"]
        is_own = answer["user_id"] == f"user {number}"
        is_own &= [score["item_id"] for score in answer["scores"]] == self.histories[number]
        self.mixed_up += not is_own
        self.answers[number] = [score["log_odds"] for score in answer["scores"]]

    async def closed(self, clients: int) -> Load:
        """Each client sends its next request once it has the answer to the last."""
        numbers = iter(range(len(self.histories)))

        async def work(client: Client) -> None:
            for number in numbers:
                await self.one(client, number)
            client.close()

        opened = [await Client().open() for _ in range(clients)]
        started = time.perf_counter()
        await asyncio.gather(*(work(client) for client in opened))
        self.wall = time.perf_counter() - started
        return self

    async def paced(self, per_second: float) -> Load:
        """Requests fall due at random times of a rate, whether or not earlier ones are answered."""
        due = np.cumsum(np.random.default_rng(1).exponential(1 / per_second, len(self.histories)))
        idle, started = [await Client().open() for _ in range(256)], time.perf_counter()

        async def work(number: int) -> None:
            client = idle.pop() if idle else await Client().open()
            await self.one(client, number, started + due[number])
            idle.append(client)

        tasks = []
        for number, at in enumerate(due):
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            tasks.append(asyncio.create_task(work(number)))
        await asyncio.gather(*tasks)
        self.wall = time.perf_counter() - started
        for client in idle:
            client.close()
        return self

    def result(self) -> dict[str, Any]:
        """Throughput, latency, and losses."""
        milliseconds = np.sort(self.seconds[np.isfinite(self.seconds)]) * 1_000
        return {
            "requests": len(self.histories),
            "seconds": round(self.wall, 1),
            "per_second": round(len(self.histories) / self.wall, 1),
            "p50_ms": round(float(np.quantile(milliseconds, 0.5)), 1),
            "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 1),
            "lost": self.lost + sum(np.isnan(self.seconds)),
            "mixed_up": self.mixed_up,
        } | ({} if np.isnan(self.cpu) else {"server_cpu_ms": round(1_000 * self.cpu / len(self.histories), 2)})

    def compare(self, denoiser: Denoiser) -> dict[str, Any]:
        """The largest difference between an answer and `Denoiser.score` of its history, and how many are too large."""
        frame = pl.DataFrame({
            "window_id": range(len(self.histories)),
            "user_id": [f"user {number}" for number in range(len(self.histories))],
            "item_ids": self.histories,
        })  # fmt: skip
        expected = denoiser.score(frame)["log_odds"].to_numpy()
        lengths = [len(history) for history in self.histories]
        given = np.concatenate([
            np.full(n, np.nan) if answer is None else answer
            for answer, n in zip(self.answers, lengths, strict=True)
        ])  # fmt: skip
        difference = np.abs(given - expected)
        wrong = np.add.reduceat(~(difference <= TOLERANCE), np.cumsum([0, *lengths[:-1]])) > 0
        return {"largest_difference": float(np.nanmax(difference)), "answers_that_differ": int(wrong.sum())}


def served(model: Path, options: list[str], run: Callable[[int], Any]) -> tuple[Any, int]:
    """Run a load against a server process, and return the result and the most memory that it held, in bytes."""
    command = [Path(sys.executable).with_name("llm4dsr"), "serve", model, "--port", str(PORT), "--threads", "1"]
    process = subprocess.Popen([*map(str, command), *options])
    try:
        asyncio.run(_ready())
        found = run(process.pid)
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        memory = [1_024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    finally:
        process.terminate()
        process.wait()
    return found, memory[0] if memory else 0


async def _ready() -> None:
    while True:
        try:
            (await Client().open()).close()
            return
        except ConnectionRefusedError:
            await asyncio.sleep(0.2)


def main() -> None:
    """Measure, and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="Folder for the model.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for results.json.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="Requests of many clients.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = arguments.scratch / "demo-denoiser"
    denoiser = demo_denoiser(model)
    histories = make_histories(denoiser, arguments.requests)

    def measured(pid: int, some: list[list[int]], clients: int) -> Load:
        load, before = Load(some), _cpu_seconds(pid)
        asyncio.run(load.closed(clients))
        load.cpu = _cpu_seconds(pid) - before
        return load

    def sequential(pid: int) -> Load:
        return measured(pid, histories[:SEQUENTIAL], 1)

    def batched(pid: int) -> tuple[Load, Load, list[tuple[float, Load]]]:
        single = measured(pid, histories[:SEQUENTIAL], 1)
        many = measured(pid, histories, CLIENTS)
        paced = []
        for rate in (fraction * len(histories) / many.wall for fraction in LOADS):
            some = histories[: max(1, int(rate * SECONDS))]
            paced.append((round(rate, 1), asyncio.run(Load(some).paced(rate))))
        return single, many, paced

    before, _ = served(model, ["--batch", "1", "--wait", "0"], sequential)
    (single, many, paced), memory = served(model, [], batched)
    load = os.getloadavg()  # above the number of cores, others were computing too
    result = {
        "one by one, batching off, one client": before.result(),
        "batching on, one client": single.result(),
        f"batching on, {CLIENTS} clients": many.result() | many.compare(denoiser),
        "offered": [{"offered_per_second": rate, **load.result()} for rate, load in paced],
        "times_as_many": round(before.wall / SEQUENTIAL * len(histories) / many.wall, 1),
        "peak_memory_mb": round(memory / 2**20),
        "cores": available_cpus(),
        "load_average": [round(value, 1) for value in load],
        "cpu": _cpu(),
        "versions": versions() | versions("fastapi", "uvicorn", "pydantic"),
        "command": f"python benchmarks/serve.py --scratch DIR --out OUT --requests {len(histories)}",
    }
    write_text(arguments.out / "results.json", json.dumps(result, indent=1, default=int) + "\n")
    print(json.dumps(result, indent=1, default=int))


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far, however many others share the cores; NaN where that is not known."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return float("nan")
    user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
