"""Bytes and milliseconds that the messages of one step take, for 2 to 8 members of 7B to 70B on several links.

Run by ``python -m benchmarks.scale_cost TOKENIZER TOKENIZER ...`` (folders or hub names; no weights are read). The
bytes are those of real messages, pickled as the Ray executor sends them, on the union vocabulary of these tokenizers.
The milliseconds follow from these bytes and from the assumptions in `LINKS`, `Ray` and `CARD`, which are printed first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isinf
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.messages import Messages
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

MEMBERS = (2, 4, 8)
BILLIONS = (7, 32, 70)
# Members in the table of shares.
FOUR = 4


@dataclass(frozen=True)
class Link:
    """How messages travel.

    Attributes:
        name: What it is called in the tables.
        bandwidth: Nominal bytes per second in one direction, at the GPU or machine that receives all answers; infinite
            within one machine.
        latency: Seconds besides: of each copy between GPUs, or of a round trip on the network.
        ray: Whether messages are pickled and sent by Ray; otherwise tensors are copied from GPU to GPU.
    """

    name: str
    bandwidth: float
    latency: float
    ray: bool


LINKS = (
    Link("NVLink 4, one process", 450e9, 10e-6, ray=False),
    Link("PCIe 5.0 x16, one process", 63e9, 10e-6, ray=False),
    Link("Ray, one machine", float("inf"), 0.0, ray=True),
    Link("Ray, 100 GbE", 12.5e9, 50e-6, ray=True),
    Link("Ray, 10 GbE", 1.25e9, 100e-6, ray=True),
)


@dataclass(frozen=True)
class Ray:
    """What Ray adds to a call, as measured by `benchmarks.ray_calls` on two cores.

    Attributes:
        first: Seconds of a call to one actor and back, without a network, 50 ms after the one before: a step's length.
        further: Seconds for each further actor that is called at the same time: processor time of the caller.
        throughput: Bytes of replies per second that one caller takes in, from all actors together.
        overhead: Bytes of Ray's own in a call and its reply, on the network.
    """

    first: float = 2.2e-3
    further: float = 0.25e-3
    throughput: float = 1e9
    overhead: int = 990


@dataclass(frozen=True)
class Card:
    """The GPU that a member runs on; a member that needs several uses them one after the other.

    Attributes:
        name: What it is called.
        bandwidth: Bytes per second that it reads from its memory.
    """

    name: str = "H100 SXM"
    bandwidth: float = 3.35e12

    def forward(self, billions: float) -> float:
        """Returns the seconds that a forward of a few tokens takes at least: all weights, in bfloat16, are read."""
        return billions * 1e9 * 2 / self.bandwidth


RAY = Ray()
CARD = Card()


@dataclass(frozen=True)
class Exchange:
    """What one member and the driver send each other in one step.

    Attributes:
        name: What kind of step it is.
        sent: Bytes of each message to the member, one per round trip.
        answered: Bytes of each answer, one per round trip.
        copied: Bytes that a member in the same process hands over: distributions over the union, in float32.
        decodes: Whether its forward takes about as long as that of one token, which is what `Card.forward` returns.
    """

    name: str
    sent: tuple[int, ...]
    answered: tuple[int, ...]
    copied: int
    decodes: bool = True

    @property
    def trips(self) -> int:
        """How many round trips it takes."""
        return len(self.sent)

    def bytes(self, link: Link) -> int:
        """Returns the bytes of one member and step."""
        return sum(self.sent) + sum(self.answered) + RAY.overhead * self.trips if link.ray else self.copied


def exchanges(messages: Messages) -> list[Exchange]:
    """Returns the kinds of steps, in the order of the tables."""
    row = messages.row_bytes
    ask, top = messages.ask(), messages.top()
    return [
        Exchange("greedy", (ask,), (top,), row),
        Exchange("greedy, with a fetch", (ask, messages.fetch()), (top, messages.fetched()), row),
        Exchange("greedy, a grammar", (messages.ask(masked=True),), (top,), row),
        Exchange("greedy, a draft of 7", (messages.ask(8, 8),), (messages.top(8),), 8 * row),
        Exchange("greedy, 16 requests", (messages.ask(requests=16),), (messages.top(requests=16),), 16 * row),
        Exchange("greedy, a prompt of 2,000", (messages.ask(2000),), (top,), row, decodes=False),
        Exchange("sampled", (ask,), (messages.full(),), row),
        Exchange("sampled, 16 requests", (messages.ask(requests=16),), (messages.full(16),), 16 * row),
    ]


def seconds(exchange: Exchange, link: Link, members: int) -> float:
    """Returns what the messages of one step take beyond the forwards.

    All members send to one receiver, whose link they share: the driver's machine, or the GPU of the first member, which
    copies nothing. Nothing of it is assumed to overlap with anything else.
    """
    if not link.ray:
        return (members - 1) * (link.latency + exchange.copied / link.bandwidth)
    calls = exchange.trips * (RAY.first + (members - 1) * RAY.further + link.latency)
    return calls + members * exchange.bytes(link) * (1 / link.bandwidth + 1 / RAY.throughput)


def share(exchange: Exchange, link: Link, members: int, billions: float) -> float:
    """Returns which part of a step its messages take, where the slowest member has so many parameters."""
    messages = seconds(exchange, link, members)
    return messages / (messages + CARD.forward(billions))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def rounded(value: float) -> str:
    """Formats a number with two digits, or with all before the point."""
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}"


def assumptions() -> str:
    """Returns what the times are computed from."""
    rows = [
        (
            link.name,
            "-" if isinf(link.bandwidth) else f"{link.bandwidth / 1e9:,.2f}",
            f"{link.latency * 1e6:.0f}",
            "pickled" if link.ray else "copied",
        )
        for link in LINKS
    ]
    forwards = ", ".join(f"{1e3 * CARD.forward(size):.1f} ms for {size}B" for size in BILLIONS)
    return "\n\n".join(
        (
            table(("link", "GB/s", "latency, microseconds", "messages"), rows),
            f"Ray: {1e3 * RAY.first:.2f} ms a call, {1e3 * RAY.further:.2f} ms for each further member called at the "
            f"same time, {RAY.throughput / 1e9:.0f} GB/s into one process, {RAY.overhead} bytes of its own a call.",
            f"Forward on {CARD.name} ({CARD.bandwidth / 1e12:.2f} TB/s), weights in bfloat16 read once: {forwards}.",
        )
    )


def bytes_table(kinds: Sequence[Exchange]) -> str:
    """Returns the kilobytes per member and step."""
    rows = [
        (
            kind.name,
            str(kind.trips),
            *(
                f"{size / 1000:.{1 if size < 10_000 else 0}f}"
                for size in (sum(kind.sent), sum(kind.answered), kind.bytes(LINKS[-1]), kind.copied)
            ),
        )
        for kind in kinds
    ]
    return table(
        ("KB of one member and step", "round trips", "sent", "answered", "all, with Ray's own", "copied"), rows
    )


def times_table(kinds: Sequence[Exchange]) -> str:
    """Returns the milliseconds of the messages of a step."""
    rows = [
        (link.name, str(members), *(rounded(1e3 * seconds(kind, link, members)) for kind in kinds))
        for link in LINKS
        for members in MEMBERS
    ]
    return table(("ms of messages a step", "members", *(kind.name for kind in kinds)), rows)


def shares_table(kinds: Sequence[Exchange]) -> str:
    """Returns which part of a step its messages take, by the size of the slowest member."""
    rows = [
        (link.name, f"{size}B", *(f"{rounded(100 * share(kind, link, FOUR, size))}%" for kind in kinds))
        for link in LINKS
        for size in BILLIONS
    ]
    return table(("messages' share of a step, four members", "slowest", *(kind.name for kind in kinds)), rows)


def report(folders: Sequence[str]) -> str:
    """Returns all tables.

    Args:
        folders: The tokenizers whose union is used, folders or hub names.
    """
    loaded = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    tokenizers = [
        MemberTokenizer(each, Path(folder).name, rows=len(each)) for each, folder in zip(loaded, folders, strict=True)
    ]
    union = UnionVocabulary(tokenizers)
    kinds = exchanges(Messages(union, tokenizers[0]))
    names = ", ".join(tokenizer.name for tokenizer in tokenizers)
    parts = (
        f"Union of {names}: {len(union):,} tokens.",
        bytes_table(kinds),
        assumptions(),
        times_table(kinds),
        shares_table([kind for kind in kinds if kind.decodes]),
    )
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs="+")
    print(report(parser.parse_args().tokenizers))


if __name__ == "__main__":
    main()
