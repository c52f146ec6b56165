"""What Ray adds to a step: milliseconds and processor time of calls to actors that compute nothing.

Run by ``python -m benchmarks.ray_calls``: two nodes on this machine, actors on both in turn, replies of several sizes
that come inline with the reply as those of `RayExecutor` do. `benchmarks.scale_cost` computes with these figures.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

# Bytes of a reply, and seconds without a call before: as between two steps of members that compute for so long.
CASES = ((1_000, 0.0), (1_000, 0.05), (100_000, 0.0), (900_000, 0.0), (14_000_000, 0.0))
ACTORS = (1, 2, 4, 8)
SENT = 500
WARM_UP = 5


class Echo:
    """An actor that replies at once."""

    def reply(self, message: bytes, size: int) -> bytes:
        """Returns so many bytes."""
        return bytes(size)


@contextmanager
def actors(count: int) -> Iterator[list[Any]]:
    """Starts a cluster of two nodes with some actors; ends both."""
    node = {"num_cpus": 1, "object_store_memory": 2**28, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "resources": {"node0": count}})
    try:
        cluster.add_node(**node, resources={"node1": count})
        ray.init(address=cluster.address, logging_level="ERROR")
        environment = {"env_vars": {"RAY_max_direct_call_object_size": str(2**24)}}
        kind = ray.remote(num_cpus=0, runtime_env=environment)(Echo)
        running = [kind.options(resources={f"node{index % 2}": 1}).remote() for index in range(count)]
        ray.get([each.reply.remote(b"", 1) for each in running])
        yield running
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure(call: Callable[[], object], repeats: int, pause: float) -> tuple[float, float]:
    """Returns the median wall time of a call and the mean processor time of this process, in seconds.

    Args:
        call: What is measured.
        repeats: How often.
        pause: Seconds without a call before each.
    """
    for _ in range(WARM_UP):
        call()
    walls, used = [], time.process_time()
    for _ in range(repeats):
        time.sleep(pause)
        began = time.perf_counter()
        call()
        walls.append(time.perf_counter() - began)
    return statistics.median(walls), (time.process_time() - used) / repeats


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    table = Table("bytes of a reply", *(f"{count} actors" for count in ACTORS), title="ms: wall (processor time here)")
    with actors(max(ACTORS)) as running:
        for size, pause in CASES:
            cells = []
            for count in ACTORS:

                def call(size: int = size, count: int = count) -> object:
                    return ray.get([each.reply.remote(bytes(SENT), size) for each in running[:count]])

                wall, used = measure(call, repeats if size < 10**7 else max(1, repeats // 10), pause)
                cells.append(f"{1e3 * wall:.2f} ({1e3 * used:.2f})")
            table.add_row(f"{size:,}" + (f", after {1e3 * pause:.0f} ms" if pause else ""), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
