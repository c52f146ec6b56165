"""Many streaming clients of one server, with requests of every kind, of which many leave before the end.

Every answer that arrives must equal the one that the engine gives to the same request alone; nothing may fail but by a
refusal (429); and at the end nothing may be left of them: in the engine, the KV caches, the event loop, the file
descriptors and the memory. ``python tests/soak_server.py --minutes 5`` prints a report; `test_server_soak.py` runs a
few seconds of it. Server and clients run in one process, each on an event loop in a thread of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
from server_fixture import RunningServer, running
from soak_server_jobs import Job, assembled, jobs

from gac_core import Ensemble
from gac_core.server.catalog import Catalog

MODELS = Path(__file__).parent.parent / "examples" / "models"


@dataclass
class Report:
    """What happened.

    Attributes:
        answered: Answered requests by kind.
        left: Requests whose client left.
        refused: Requests that got a 429.
        wrong: What was wrong, one line each.
        statuses: HTTP statuses that the server recorded.
        resident: Resident memory in MiB, every two seconds.
        left_over: What was left at the end.
    """

    answered: Counter[str] = field(default_factory=Counter)
    left: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    resident: list[float] = field(default_factory=list)
    left_over: dict[str, Any] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """MiB by which the memory grew between the second and the last quarter."""
        quarter = max(1, len(self.resident) // 4)
        return statistics.median(self.resident[-quarter:]) - statistics.median(self.resident[quarter : 2 * quarter])

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))
        lines = [
            f"{sum(self.answered.values())} answered ({kinds}), {self.left} left, {self.refused} refused",
            f"statuses: {dict(sorted(self.statuses.items()))}",
            f"memory: {self.resident[0]:.0f} to {self.resident[-1]:.0f} MiB, second to last quarter {self.growth:+.1f}",
            f"left over: {self.left_over or 'nothing'}",
            f"wrong: {len(self.wrong)}",
        ]
        return "\n".join([*lines, *self.wrong[:20]])


class Client:
    """Sends random requests until a time.

    Args:
        http: Its connections.
        jobs: What it asks.
        report: Where it counts.
        seed: Of its choices.
    """

    def __init__(self, http: httpx.AsyncClient, jobs: list[Job], report: Report, seed: str) -> None:
        self._http = http
        self._jobs = jobs
        self._report = report
        self._rng = random.Random(seed)

    async def run(self, end: float) -> None:
        """Sends one request after the other until a time of `time.monotonic`."""
        while time.monotonic() < end:
            job = self._rng.choice(self._jobs)
            leaves = self._rng.random() < 0.25
            try:
                if leaves and self._rng.random() < 0.3:
                    await self._leave_early(job)
                else:
                    await self._stream(job, self._rng.randrange(12) if leaves else None)
            except Exception as error:
                self._report.wrong.append(f"{job.kind}: {type(error).__name__}: {error}")

    async def _leave_early(self, job: Job) -> None:
        """Sends a request, streamed or not, and leaves after a moment, whatever has come."""
        body = {**job.body, "stream": self._rng.random() < 0.5}
        task = asyncio.ensure_future(self._http.post(job.path, json=body))
        await asyncio.wait({task}, timeout=self._rng.random() * 0.5)
        self._report.left += not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _stream(self, job: Job, num_events: int | None) -> None:
        """Reads a stream, or the first of its events; and compares the answers.

        Args:
            job: The request.
            num_events: Events after which the client leaves; None reads all.
        """
        events: list[dict[str, Any]] = []
        delay = 0.02 if self._rng.random() < 0.1 else 0.0
        async with self._http.stream("POST", job.path, json={**job.body, "stream": True}) as response:
            if response.status_code == 429:
                self._report.refused += 1
                await asyncio.sleep(min(float(response.headers["retry-after"]), 1.0) * self._rng.random())
                return
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}: {(await response.aread()).decode()[:300]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    break
                events.append(json.loads(line.removeprefix("data: ")))
                if "error" in events[-1]:
                    raise RuntimeError(str(events[-1]))
                if num_events is not None and len(events) >= num_events:
                    self._report.left += 1
                    return
                await asyncio.sleep(delay)
            else:
                raise RuntimeError("the stream ended without [DONE]")
        found = assembled(events, len(job.answers))
        self._report.answered[job.kind] += 1
        if found != job.answers:
            self._report.wrong.append(f"{job.kind}: {found} instead of {job.answers}")


@dataclass(frozen=True)
class Holdings:
    """What the process holds."""

    requests: int
    waiting: int
    slots: int
    tasks: int
    descriptors: int


async def holdings(ensemble: Ensemble, loop: asyncio.AbstractEventLoop) -> Holdings:
    """Returns what the process holds; ``tasks`` are those of the server's event loop."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    health = ensemble.health()
    tasks = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), loop))
    slots = sum(member._slots.num_running for member in ensemble._members)
    return Holdings(health.requests, health.queue, slots, tasks, len(os.listdir("/proc/self/fd")))


def resident() -> float:
    """Returns the resident memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _recorded(server: RunningServer, report: Report) -> None:
    """Moves the server's records to the report, so that they take no memory."""
    while server.records:
        report.statuses[server.records.pop().status] += 1


async def _watched(server: RunningServer, report: Report, end: float) -> None:
    while time.monotonic() < end:
        _recorded(server, report)
        report.resident.append(resident())
        await asyncio.sleep(2.0)


@dataclass(frozen=True)
class Asked:
    """How long, with how many clients, and with which seed."""

    seconds: float
    clients: int = 64
    seed: int = 0


async def soak(
    server: RunningServer, ensemble: Ensemble, loop: asyncio.AbstractEventLoop, jobs: list[Job], asked: Asked
) -> Report:
    """Runs the clients, and returns what happened and what is left."""
    report = Report()
    for _ in range(2):
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            await asyncio.gather(*(Client(http, jobs, Report(), "warm").run(time.monotonic() + 0.5) for _ in range(4)))
        before = await _settled(ensemble, loop, None)
    server.records.clear()
    end = time.monotonic() + asked.seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=asked.clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        clients = [Client(http, jobs, report, f"{asked.seed} {number}") for number in range(asked.clients)]
        await asyncio.gather(_watched(server, report, end), *(client.run(end) for client in clients))
    after = await _settled(ensemble, loop, before)
    _recorded(server, report)
    report.left_over = {
        name: f"{getattr(after, name)} instead of {getattr(before, name)}"
        for name in Holdings.__dataclass_fields__
        if getattr(after, name) > getattr(before, name)
    }
    report.wrong += [f"status {status}: {count}" for status, count in report.statuses.items() if status >= 500]
    return report


async def _settled(ensemble: Ensemble, loop: asyncio.AbstractEventLoop, before: Holdings | None) -> Holdings:
    """Returns what is held once it is no more than before, or after some seconds."""
    end = time.monotonic() + (2 if before is None else 20)
    while True:
        found = await holdings(ensemble, loop)
        idle = not (found.requests or found.waiting or found.slots)
        fits = before is not None and found.tasks <= before.tasks and found.descriptors <= before.descriptors
        if time.monotonic() > end or (idle and fits):
            return found
        await asyncio.sleep(0.1)


def run(ensemble: Ensemble, asked: Asked, count: int) -> Report:
    """Serves an ensemble and runs the clients.

    Args:
        ensemble: The ensemble.
        asked: Duration, clients and seed.
        count: Requests of each kind.
    """
    loops: list[asyncio.AbstractEventLoop] = []
    catalog = Catalog({"gac": ensemble})
    made = jobs(catalog, count)
    with running(
        catalog, observers=[lambda _: loops.append(asyncio.get_running_loop()) if not loops else None]
    ) as server:
        httpx.get(f"{server.url}/health")
        return asyncio.run(soak(server, ensemble, loops[0], made, asked))


def main() -> None:
    """Runs and prints a report; the exit status is 1 if anything was wrong or is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=float, default=32.0, help="MiB by which the memory may grow")
    args = parser.parse_args()
    members = [str(MODELS / name) for name in ("ash", "birch", "cedar")]
    with Ensemble.load(members, dtype="float32", max_queue=40, cache_gib=0.0625) as ensemble:
        report = run(ensemble, Asked(60 * args.minutes, args.clients, args.seed), count=8)
    print(report)
    sys.exit(bool(report.wrong or report.left_over or report.growth > args.growth))


if __name__ == "__main__":
    main()
