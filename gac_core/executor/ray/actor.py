"""`MemberActor`: one member in a process of Ray."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
import torch

from gac_core.config import EnsembleConfig
from gac_core.executor.evaluator import Evaluator
from gac_core.executor.ray.remote_errors import PortableError
from gac_core.executor.ray.wire import (
    AnswerMessage,
    FetchMessage,
    FetchReply,
    ForwardMessage,
    ForwardReply,
    decode,
    encode,
)
from gac_core.model.pool import Lease, default_pool
from gac_core.tokenization.vocabulary import Alignment


@dataclass(frozen=True)
class MemberFacts:
    """What the driver needs to know of a member that an actor has loaded.

    Attributes:
        rows: Rows of the model's output head.
        context: The longest text that it can read, in tokens; None without a limit.
        size: Number of parameters.
        device: Where its logits are computed.
        dtype: The dtype of its weights.
        weight_bytes: Bytes of its weights.
        end_ids: Ids that end a text.
        fingerprint: That of its tokenizer.
        keeps_documents: Whether its KV cache keeps documents beside those of requests.
        image_token_id: The id that its model replaces by features of images; None if it reads text alone.
        pid: The actor's process.
        node_id: Ray's id of the node.
        node: The node's address.
        warnings: What was logged while it was loaded, as level and text.
    """

    rows: int
    context: int | None
    size: int
    device: str
    dtype: str
    weight_bytes: int
    end_ids: tuple[int, ...]
    fingerprint: str
    keeps_documents: bool
    image_token_id: int | None
    pid: int
    node_id: str
    node: str
    warnings: tuple[tuple[int, str], ...]

    @property
    def place(self) -> str:
        """Where it runs, for messages."""
        return f"process {self.pid} on node {self.node}"


@dataclass(frozen=True)
class Threads:
    """How many threads a member's forwards use on a CPU.

    Attributes:
        number: Their number; None: the cores of the node, shared by the members.
        members: The number of members.
    """

    number: int | None
    members: int

    def on(self, cores: int) -> int:
        """Returns the number of threads on a node with so many cores."""
        return self.number or max(1, cores // self.members)


@dataclass(frozen=True)
class LoadFailure:
    """Why a member could not be loaded.

    Attributes:
        error: The exception.
        node: The node's address.
    """

    error: PortableError
    node: str


class MemberActor:
    """Loads a member and answers asks; what it raises comes back as a value.

    Methods run one after another in one thread, but for `watch`, which has a thread of its own.
    """

    def __init__(self) -> None:
        self._node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._place = f"process {os.getpid()} on node {self._node}"
        self._alignments: OrderedDict[str, Alignment] = OrderedDict()

    def load(self, config: EnsembleConfig, threads: Threads) -> bytes:
        """Loads the one member of a configuration; returns its `MemberFacts` or a `LoadFailure`."""
        try:
            torch.set_num_threads(threads.on(_cores()))
            with _recorded_warnings() as warnings:
                self._lease: Lease = default_pool().acquire(config)
            member = self._lease.members[0]
            self._evaluator = Evaluator(member, compact=True)
            model = default_pool().models()[0]
            context = ray.get_runtime_context()
            return encode(
                MemberFacts(
                    rows=member.tokenizer.rows,
                    context=member.context,
                    size=member.size,
                    device=str(member.device),
                    dtype=model.dtype,
                    weight_bytes=model.nbytes,
                    end_ids=tuple(sorted(member.tokenizer.end_ids)),
                    fingerprint=member.tokenizer.fingerprint,
                    keeps_documents=member.keeps_documents,
                    image_token_id=None if member.vision is None else member.vision.image_token_id,
                    pid=os.getpid(),
                    node_id=context.get_node_id(),
                    node=self._node,
                    warnings=tuple(warnings.texts),
                )
            )
        except BaseException as error:
            return encode(LoadFailure(PortableError.of(error, self._place), self._node))

    def forward(self, *parts: bytes) -> bytes:
        """Answers a `ForwardMessage` by a `ForwardReply`, or by the `PortableError` of a defect."""
        return self._answered(lambda: self._forward(decode(parts)))

    def _forward(self, message: ForwardMessage) -> ForwardReply:
        member = self._evaluator.member
        for key in message.forget:
            self._alignments.pop(key, None)
        for table in message.tables:
            self._alignments[table.key] = Alignment.of_table(table, member.device)
        asks = [ask.ask(self._alignments[ask.alignment]) for ask in message.asks]
        masks = [None if ask.mask is None else ask.mask() for ask in asks]
        answers = self._evaluator.forward(asks, message.prefill_seconds)
        sent = [AnswerMessage.of(*each, self._place) for each in zip(answers, masks, strict=True)]
        return ForwardReply(sent, member.times.snapshot(), member.cache_bytes, member.document_cache)

    def fetch(self, *parts: bytes) -> bytes:
        """Answers a list of `FetchMessage` by a `FetchReply`, or by the `PortableError` of a defect."""

        def run() -> FetchReply:
            wanted: Sequence[FetchMessage] = decode(parts)
            return FetchReply.of(self._evaluator.fetch([each.fetch() for each in wanted]), self._place)

        return self._answered(run)

    def _answered(self, run: Callable[[], object]) -> bytes:
        try:
            return encode(run())
        except BaseException as error:
            return encode(PortableError.of(error, self._place))

    def release(self, request_id: str, clear: bool) -> None:
        """Frees what is held for a request; never raises."""
        try:
            self._evaluator.release(request_id, clear)
        except BaseException:
            logging.getLogger(__name__).exception("a request's slot could not be freed")

    def watch(self) -> None:
        """Never returns: its result is there once the process is gone."""
        threading.Event().wait()


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _recorded_warnings(logging.Handler):
    """Collects what this library logs from warnings on, since logs of actors stay on their nodes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append((record.levelno, record.getMessage()))

    def __enter__(self) -> _recorded_warnings:
        logging.getLogger("gac_core").addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("gac_core").removeHandler(self)
