"""Throughput of a server for streaming clients against the engine in the same process, and what delays other clients.

Run by ``python -m benchmarks.server``. The process model is that of ``gac serve``: one process with the engine's thread
and one event loop (uvloop). In it runs one ensemble, for both sides in turn: *in process*, tasks of that loop read
`Ensemble.astream`; *HTTP*, uvicorn on that loop answers the connections of one client process
(`benchmarks.streaming_client`). Both sides answer the same prompts, which after the warm-up both have in the KV cache
as far as it holds them; texts must be equal in float32. A figure is the median over the rounds. Seconds of processor
time are those of the server's process, which depend little on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.served import Prompt, Server, client_of, serving
from benchmarks.serving import ensemble_of, models_of, prose
from benchmarks.streaming_client import Results
from gac_core import Ensemble, RequestOutput

MODELS = Path(__file__).parent.parent / "examples" / "models"


@dataclass(frozen=True)
class Side:
    """One side of one round.

    Attributes:
        seconds: Wall time.
        cpu: Processor seconds of the server's process.
        loop_cpu: Those of the thread of its event loop.
        texts: The answers of each client.
        tokens: Their tokens, where they were counted.
    """

    seconds: float
    cpu: float
    loop_cpu: float
    texts: list[list[str]]
    tokens: int = 0


@dataclass(frozen=True)
class Case:
    """What the clients of both sides ask for.

    Attributes:
        name: Its name in the table.
        clients: The prompts of each client, which it sends one after the other.
        tokens: Longest answers.
        drafts: Whether tokens are drafted.
    """

    name: str
    clients: list[list[Prompt]]
    tokens: int
    drafts: bool


async def answer_in_process(ensemble: Ensemble, case: Case) -> list[list[RequestOutput]]:
    """Answers the prompts of each client in turn, all clients at once."""

    async def one(prompts: list[Prompt]) -> list[RequestOutput]:
        outputs = []
        for prompt in prompts:
            # With a deadline, as the server's requests.
            answer = ensemble.astream(prompt, max_tokens=case.tokens, drafts=case.drafts, timeout=600.0)
            outputs += [chunk.output async for chunk in answer if chunk.output is not None]
        return outputs

    return await asyncio.gather(*(one(prompts) for prompts in case.clients))


def in_process(server: Server, ensemble: Ensemble, case: Case) -> Side:
    """Runs a round without HTTP."""
    cpu, began = server.seconds(), time.perf_counter()
    outputs = server.call(answer_in_process(ensemble, case))
    seconds, used = time.perf_counter() - began, server.seconds()
    texts = [[output.text for output in client] for client in outputs]
    tokens = sum(output.usage.completion_tokens for client in outputs for output in client)
    return Side(seconds, used[0] - cpu[0], used[1] - cpu[1], texts, tokens)


def over_http(server: Server, case: Case) -> tuple[Side, Results]:
    """Runs a round with HTTP."""
    plan = [client_of(prompts, case.tokens, drafts=case.drafts) for prompts in case.clients]
    cpu = server.seconds()
    results = server.request(plan)
    used = server.seconds()
    texts = [[answer.text for answer in each] for each in results.answers]
    return Side(results.seconds, used[0] - cpu[0], used[1] - cpu[1], texts), results


def throughput(server: Server, ensemble: Ensemble, case: Case, rounds: int, exact: bool = True) -> Table:
    """Runs both sides in turn and returns their table.

    Args:
        server: Serves the ensemble.
        ensemble: The ensemble.
        case: What is asked.
        rounds: Rounds after the warm-up.
        exact: Whether texts must be equal; in 16 bits they depend on the batch.

    Raises:
        RuntimeError: A text differs.
    """
    pairs: list[tuple[Side, Side, Results]] = []
    for number in range(rounds + 1):
        if number % 2:
            inside = in_process(server, ensemble, case)
            outside, results = over_http(server, case)
        else:
            outside, results = over_http(server, case)
            inside = in_process(server, ensemble, case)
        if exact and inside.texts != outside.texts:
            raise RuntimeError("a text over HTTP differs from that of the engine")
        if number:
            pairs.append((inside, outside, results))
    table = Table(f"{case.name}: {len(case.clients)} clients, {pairs[0][0].tokens} tokens", *SPREAD)
    rows = {
        "HTTP / in process, tokens per second (target 0.90)": [a.seconds / b.seconds for a, b, _ in pairs],
        "HTTP / in process, tokens per processor second": [a.cpu / b.cpu for a, b, _ in pairs],
        "in process, tokens per second": [a.tokens / a.seconds for a, _, _ in pairs],
        "HTTP, tokens per second": [a.tokens / b.seconds for a, b, _ in pairs],
        "in process, ms of processor per token": [1000 * a.cpu / a.tokens for a, _, _ in pairs],
        "HTTP, ms of processor per token, server": [1000 * b.cpu / a.tokens for a, b, _ in pairs],
        "in process, of it the event loop": [1000 * a.loop_cpu / a.tokens for a, _, _ in pairs],
        "HTTP, of it the event loop": [1000 * b.loop_cpu / a.tokens for a, b, _ in pairs],
        "HTTP, ms of processor per token, clients": [1000 * c.cpu / a.tokens for a, _, c in pairs],
        "HTTP, events per token": [sum(len(x.times) for y in c.answers for x in y) / a.tokens for a, _, c in pairs],
    }
    for name, values in rows.items():
        table.add_row(name, *spread(values))
    return table


SPREAD = ("median", "smallest", "largest")


def spread(values: Sequence[float]) -> tuple[str, str, str]:
    """Returns median, smallest and largest as text."""
    return tuple(f"{value:.3f}" for value in (statistics.median(values), min(values), max(values)))  # type: ignore[return-value]


def delays(server: Server, rounds: int, long: int) -> Table:
    """Returns the delays of short requests alone, beside a long prompt, and beside clients that read nothing.

    Args:
        server: Serves members with a long context, whose texts do not end.
        rounds: Rounds.
        long: Words of the long prompt.
    """
    columns = ("first token, median", "largest", "next event, median", "99%", "largest")
    table = Table("4 clients, ms", *columns)
    found: dict[str, tuple[list[float], list[float]]] = {}
    seeds = iter(range(10**6))

    def sixteen(mode: str) -> list[dict[str, Any]]:
        return [client_of([prose(8, next(seeds))], 400, mode, logprobs=5) for _ in range(16)]

    for number in range(rounds + 1):
        beside = {
            "alone": [],
            "beside a long prompt": [client_of([prose(long, next(seeds))], 4, "background")],
            "beside 16 that read": sixteen("background"),
            "beside 16 that read nothing": sixteen("ignore"),
        }
        for name, others in beside.items():
            short = [client_of([prose(8, next(seeds)) for _ in range(4)], 24) for _ in range(4)]
            answers = [answer for client in server.request([*others, *short]).answers for answer in client]
            firsts, gaps = found.setdefault(name, ([], []))
            if number:
                firsts += [1000 * (answer.times[0] - answer.began) for answer in answers]
                gaps += [1000 * (after - before) for answer in answers for before, after in pairwise(answer.times)]
    for name, (firsts, gaps) in found.items():
        values = [statistics.median(firsts), max(firsts), statistics.median(gaps)]
        values += [statistics.quantiles(gaps, n=100)[98], max(gaps)]
        table.add_row(name, *(f"{value:.1f}" for value in values))
    return table


def cases(args: argparse.Namespace) -> list[Case]:
    """Returns what is measured: texts that the embedded members continue at length, and conversations."""
    count = args.clients * args.requests
    texts: list[Prompt] = ["passages " * (10 + index % 50) + "the bridge of the town" for index in range(count)]
    talks: list[Prompt] = [
        [{"role": "user", "content": f"Who built the bridge number {index}?"}] for index in range(count)
    ]
    return [
        Case(name, [prompts[place :: args.clients] for place in range(args.clients)], args.tokens, drafts)
        for name, prompts, drafts in (
            ("texts, no drafts", texts, False),
            ("texts, drafts", texts, True),
            ("conversations, drafts", talks, True),
        )
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("members", nargs="*", default=[str(MODELS / name) for name in ("ash", "birch", "cedar")])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1, help="of each client, one after the other")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--batch", type=int, default=16, help="max_batch_size")
    parser.add_argument("--threads", type=int, default=1, help="of a forward; small models gain nothing from more")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--long", type=int, default=1000, help="words of the long prompt; 0 skips delays")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=110)
    with (
        Ensemble.load(args.members, dtype=args.dtype, max_batch_size=args.batch) as ensemble,
        serving(ensemble) as server,
    ):
        for case in cases(args):
            if isinstance(case.clients[0][0], list) and ensemble.without_chat_template():
                continue
            console.print(throughput(server, ensemble, case, args.rounds, args.dtype == "float32"))
    if args.long:
        # Random models of a long context, which never end a text.
        shape = argparse.Namespace(tokenizers=args.members[:2], width=256, layers=4)
        with ensemble_of(models_of(shape, torch.float32), max_batch_size=32) as ensemble, serving(ensemble) as server:
            console.print(delays(server, args.rounds, args.long))


if __name__ == "__main__":
    main()
