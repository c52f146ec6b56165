"""Random bodies for every route of a server: by its OpenAPI document, and mutations of valid ones.

No response may be a 500, none may take long, errors have OpenAI's form with the request's id, answers fit the document,
and the server writes the same texts afterwards. ``python tests/fuzz_server.py --count 10000`` prints what came back;
`test_server_fuzz.py` runs a few.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from conftest import EMBEDDED, shared_ensemble
from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import Mutation, mutated
from rawhttp import check_error, events
from schemathesis import GenerationMode
from server_fixture import served
from twins import combined, difference

from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

# Seconds that a response may take; the trial of a grammar may cost two seconds of processor time.
LIMIT = 30.0
ROUTES = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/warm")
PROBE: dict[str, Any] = {"model": "gac", "prompt": "Where is it?", "max_tokens": 4, "temperature": 0}
MODES = {"positive": GenerationMode.POSITIVE, "negative": GenerationMode.NEGATIVE}


@dataclass
class Report:
    """What came back.

    Attributes:
        statuses: Responses by source, route and status; ``"broken"`` for streams that ended with an error.
        refused: Refusals by code and field.
        wrong: What must not be, with the bodies.
        slowest: Seconds of the slowest response, and its body.
    """

    statuses: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def __str__(self) -> str:
        columns = sorted({status for _, _, status in self.statuses})
        lines = ["| source | route | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
        for source, route in sorted({each[:2] for each in self.statuses}):
            counts = [str(self.statuses[source, route, status]) for status in columns]
            lines.append("| " + " | ".join([source, route, *counts]) + " |")
        totals = [str(sum(n for (_, _, own), n in self.statuses.items() if own == status)) for status in columns]
        lines += [
            "| all | | " + " | ".join(totals) + " |",
            f"{self.statuses.total()} bodies; slowest: {self.slowest[0]:.1f} s: {self.slowest[1][:300]}",
        ]
        lines.append("refused: " + ", ".join(f"{name.strip()} {count}" for name, count in self.refused.most_common(40)))
        return "\n".join([*lines, f"wrong: {len(self.wrong)}", *self.wrong])


class Fuzzer:
    """Sends bodies to a server and checks what comes back.

    Args:
        url: The server's.

    Attributes:
        report: What came back so far.
    """

    def __init__(self, url: str) -> None:
        self.schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        self.report = Report()
        self._client = httpx.Client(base_url=url, timeout=LIMIT)
        self._probe = self._text()

    def close(self) -> None:
        """Closes the connections, after a last check that texts are as before."""
        self._check_probe("at the end")
        self._client.close()

    def send(self, source: str, mutation: Mutation) -> None:
        """Sends one body and checks the response; ``source`` says where it comes from."""
        route, shown = mutation.route, mutation.shown[:600]
        began = time.monotonic()
        try:
            headers = {"content-type": "application/json", **mutation.headers}
            response = self._client.post(route, content=mutation.content, headers=headers)
        except httpx.HTTPError as error:
            self.report.wrong.append(f"{source} {route}: {error!r}: {shown}")
            self.report.statuses[source, route, type(error).__name__] += 1
            self._check_probe(shown)
            return
        self.report.slowest = max(self.report.slowest, (time.monotonic() - began, shown))
        status = str(response.status_code)
        try:
            status = self._check(route, response) or status
        except Exception as error:
            text = response.text[:300]
            self.report.wrong.append(f"{source} {route}: {type(error).__name__} {error}: {text}: {shown}")
            self._check_probe(shown)
        self.report.statuses[source, route, status] += 1

    def _check(self, route: str, response: httpx.Response) -> str | None:
        """Raises if a response is not as documented; returns a name for the report in place of its status."""
        request_id = response.headers["x-request-id"]
        if response.status_code != 200:
            error = check_error(response.json(), request_id)
            # A random timeout may be too short.
            assert response.status_code in (*range(400, 500), 504), "an error of the server"
            self.report.refused[f"{error['code']} {error['param'] or ''}".partition("[")[0]] += 1
        elif response.headers["content-type"].startswith("text/event-stream"):
            return check_stream(response.content, request_id)
        # Only the response is checked; a request that was sent in parts cannot be read again.
        response.request = httpx.Request("POST", response.url)
        self.schema[route]["POST"].validate_response(response)
        return None

    def _text(self) -> str:
        text: str = self._client.post("/v1/completions", json=PROBE).json()["choices"][0]["text"]
        return text

    def _check_probe(self, shown: str) -> None:
        if self._text() != self._probe:
            self.report.wrong.append(f"another text after: {shown}")

    # ---- sources

    def generated(self, mode: str, route: str, count: int, number: int) -> None:
        """Sends bodies of the OpenAPI document.

        Args:
            mode: ``"positive"``: bodies that fit it; ``"negative"``: those that do not.
            route: The path.
            count: How many at most.
            number: Seed of the bodies.
        """
        strategy = self.schema[route]["POST"].as_strategy(generation_mode=MODES[mode])

        @seed(number)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def run(case: schemathesis.Case) -> None:
            given = case.as_transport_kwargs(base_url="http://server")
            content = given.get("data")
            if "json" in given:
                content = json.dumps(given["json"]).encode()
            elif isinstance(content, str):
                content = content.encode()
            elif not isinstance(content, bytes):
                content = b""
            headers = {name: value for name, value in given["headers"].items() if name.lower() != "user-agent"}
            headers.pop("Content-Length", None)
            self.send(mode, Mutation(route, content, repr(content), headers))

        run()

    def mutations(self, count: int, number: int) -> None:
        """Sends mutations of valid bodies."""
        rng = random.Random(number)
        for _ in range(count):
            self.send("mutated", mutated(rng))

    def twins(self, url: str, count: int, number: int) -> None:
        """Compares streams of a server with answers in one piece; each combination of fields counts as two bodies."""
        rng, client = random.Random(number), httpx.Client(base_url=url, timeout=LIMIT)
        for _ in range(count // 2):
            route, body = combined(rng)
            try:
                status, wrong = difference(client, route, body)
            except Exception as error:
                status, wrong = 0, repr(error)
            self.report.statuses["combined", route, str(status)] += 2
            if wrong or status not in (200, 400):
                self.report.wrong.append(f"combined {route}: {status} {wrong[:1500]}: {body}")
        client.close()


def check_stream(content: bytes, request_id: str) -> str:
    """Asserts that a stream ended well or with an error; returns which."""
    *pieces, last = events(content)
    assert all(json.loads(each)["object"] for each in pieces), "a piece without a kind"
    if last == "[DONE]":
        return "200 stream"
    check_error(json.loads(last), request_id)
    return "broken"


@contextmanager
def fuzzed_servers() -> Iterator[tuple[str, str]]:
    """Two servers of the embedded members: one whose answers have 4 tokens at most, and one with longer answers."""
    limits = ServerSettings(max_tokens=4, max_choices=2, max_body_bytes=2 * 2**20, request_timeout=20.0)
    with shared_ensemble(EMBEDDED) as ensemble:
        catalog = Catalog({"gac": ensemble})
        with served(catalog, limits) as short, served(catalog, ServerSettings()) as long:
            yield short, long


def fuzz(urls: tuple[str, str], count: int, number: int = 0, show: Callable[[Report], None] | None = None) -> Report:
    """Sends so many bodies by the OpenAPI document, a sixteenth as many combinations, and a quarter as many mutations.

    Args:
        urls: The servers: of short answers, and of longer ones for the combinations.
        count: Bodies by the document.
        number: Seed. Default 0.
        show: Called with the report now and then. Default: nothing.
    """
    fuzzer = Fuzzer(urls[0])
    try:
        for place, route in enumerate(ROUTES):
            # Routes of answers have more fields than those of tokens.
            share = count * (3 if place < 2 else 1) // 16
            for mode in MODES:
                fuzzer.generated(mode, route, share, number)
                if show is not None:
                    show(fuzzer.report)
        fuzzer.twins(urls[1], count // 16, number)
        fuzzer.mutations(count // 4, number)
    finally:
        fuzzer.close()
    return fuzzer.report


def main() -> None:
    """Prints a report; the exit status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with fuzzed_servers() as urls:
        report = fuzz(urls, args.count, args.seed, lambda report: print(report, flush=True))
    print(f"{report}\n{time.monotonic() - began:.0f} s")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
