"""What crosses between this process and a member's actor, as bytes.

Arrays are numpy's, since those of torch take longer to pickle. Masks are packed into bits, and a full answer under a
mask holds the allowed tokens alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gac_core import combination
from gac_core.combination import Gate
from gac_core.executor.messages import (
    Answer,
    Ask,
    Failure,
    Fetch,
    Form,
    LogitOffsets,
    TargetLogprobs,
    Targets,
    TopDistributions,
)
from gac_core.executor.ray.image_message import ImageMessage
from gac_core.executor.ray.remote_errors import PortableError
from gac_core.model.chunk import Chunk, KeptPrefix
from gac_core.model.costs import TimesSnapshot
from gac_core.model.entries import DocumentCache
from gac_core.tokenization.vocabulary import Alignment, AlignmentTable

Array = npt.NDArray[Any]

PART_BYTES = 90_000
"""Bytes of one argument at most: Ray passes larger ones through shared memory, which takes longer."""


@dataclass(frozen=True)
class AskMessage:
    """An `Ask`: its fields, the alignment by its key.

    Attributes:
        images: Those of its chunk.
        keep: That of its chunk.
        mask: As bits, shape ``[ends, union / 8]``.
        offsets: As the ids, int32, and the values, float64, of each end.
        gate_rule: Pickled.
    """

    request_id: str
    start: int
    token_ids: Array
    num_logits: int
    ends: tuple[int, ...]
    alignment: str
    form: Form
    repetition_penalty: float
    temperature: float
    text_before: Array | None
    mask: Array | None
    offsets: tuple[tuple[Array, Array], ...]
    gate_rule: bytes | None
    share: float
    fetch_from: int
    targets: Targets | None
    images: ImageMessage | None
    keep: KeptPrefix | None

    @classmethod
    def of(cls, ask: Ask, mask: Tensor | None) -> AskMessage:
        """Returns the message of an ask, whose mask was evaluated."""
        return cls(
            request_id=ask.chunk.request_id,
            start=ask.chunk.start,
            token_ids=np.array(ask.chunk.token_ids, np.int32),
            num_logits=ask.chunk.num_logits,
            ends=ask.ends,
            alignment=ask.alignment.table.key,
            form=ask.form,
            repetition_penalty=ask.repetition_penalty,
            temperature=ask.temperature,
            text_before=np.array(ask.text_before, np.int32) if ask.text_before else None,
            mask=None if mask is None else np.packbits(mask.numpy(), axis=-1),
            offsets=tuple((_array(each.ids.int()), _array(each.values)) for each in ask.offsets),
            gate_rule=None if ask.gate_rule is None else _packed_rule(ask.gate_rule),
            share=ask.share,
            fetch_from=ask.fetch_from,
            targets=ask.targets,
            images=None if ask.chunk.images is None else ImageMessage.of(ask.chunk.images),
            keep=ask.chunk.keep,
        )

    def ask(self, alignment: Alignment) -> Ask:
        """Returns the ask, beside the model."""
        images = None if self.images is None else self.images.images()
        chunk = Chunk(self.request_id, self.start, tuple(self.token_ids.tolist()), self.num_logits, images, self.keep)
        return Ask(
            chunk=chunk,
            ends=self.ends,
            alignment=alignment,
            form=self.form,
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            text_before=() if self.text_before is None else tuple(self.text_before.tolist()),
            mask=None if self.mask is None else _mask(self.mask, alignment.table.size),
            offsets=tuple(LogitOffsets(_tensor(ids).long(), _tensor(values)) for ids, values in self.offsets),
            gate_rule=None if self.gate_rule is None else _rule(self.gate_rule),
            share=self.share,
            fetch_from=self.fetch_from,
            targets=self.targets,
        )


def _packed_rule(rule: Gate) -> bytes:
    """A gate rule as bytes; one of the user's with its code, where an actor cannot import it."""
    if getattr(rule, "__module__", "").startswith(combination.__name__):
        return pickle.dumps(rule)
    from ray import cloudpickle

    packed: bytes = cloudpickle.dumps(rule)  # type: ignore[no-untyped-call]
    return packed


def _rule(packed: bytes) -> Gate:
    """A gate rule that is unpickled when it measures, so that what this raises is a failure of its ask alone."""

    def measure(probs: Tensor, share: float | Tensor) -> Tensor:
        measured: Tensor = pickle.loads(packed)(probs, share)
        return measured

    return measure


def _mask(bits: Array, size: int) -> Callable[[], Tensor]:
    allowed = torch.from_numpy(np.unpackbits(bits, axis=-1, count=size)).bool()
    return lambda: allowed


@dataclass(frozen=True)
class ForwardMessage:
    """One step of a member.

    Attributes:
        asks: What is asked.
        prefill_seconds: As in `Executor.forward`.
        tables: Alignment tables that the actor does not have yet.
        forget: Keys of tables that it shall drop.
    """

    asks: Sequence[AskMessage]
    prefill_seconds: float | None
    tables: Sequence[AlignmentTable]
    forget: Sequence[str]


@dataclass(frozen=True)
class FailureMessage:
    """A `Failure`."""

    error: PortableError
    stage: str
    of_member: bool

    @classmethod
    def of(cls, failure: Failure, process: str) -> FailureMessage:
        """Returns the message of a failure in a process."""
        return cls(PortableError.of(failure.error, process), failure.stage, failure.of_member)

    def failure(self) -> Failure:
        """Returns the failure."""
        return Failure(self.error.rebuild(), self.stage, self.of_member)


@dataclass(frozen=True)
class TopMessage:
    """`TopDistributions` with ids as int32."""

    ids: Array
    probs: Array
    totals: Array
    rest: Array


@dataclass(frozen=True)
class AnswerMessage:
    """An `Answer`; a full one under a mask holds the probabilities of the allowed tokens in a row."""

    result: Array | TopMessage | TargetLogprobs | FailureMessage | None
    seconds: float
    read: int
    computed: int
    certainty: Array | None
    kept_bytes: int | None

    @classmethod
    def of(cls, answer: Answer, mask: Tensor | None, process: str) -> AnswerMessage:
        """Returns the message of an answer.

        Args:
            answer: The answer.
            mask: The ask's mask, bool, shape ``[ends, union]``.
            process: The process that made it, for errors.
        """
        result = answer.result
        packed: Array | TopMessage | TargetLogprobs | FailureMessage | None = None
        if isinstance(result, Failure):
            packed = FailureMessage.of(result, process)
        elif isinstance(result, TargetLogprobs):
            packed = result
        elif isinstance(result, TopDistributions):
            packed = TopMessage(
                *(_array(part) for part in (result.ids.int(), result.probs, result.totals, result.rest))
            )
        elif result is not None:
            packed = _array(result if mask is None else result.cpu()[mask])
        certainty = None if answer.certainty is None else _array(answer.certainty)
        return cls(packed, answer.seconds, answer.read, answer.computed, certainty, answer.kept_bytes)

    def answer(self, mask: Tensor | None) -> Answer:
        """Returns the answer, with tensors on the CPU.

        Args:
            mask: The ask's mask.
        """
        result: Tensor | TopDistributions | TargetLogprobs | Failure | None = None
        if isinstance(self.result, FailureMessage):
            result = self.result.failure()
        elif isinstance(self.result, TargetLogprobs):
            result = self.result
        elif isinstance(self.result, TopMessage):
            top = self.result
            ids, probs, totals, rest = map(_tensor, (top.ids, top.probs, top.totals, top.rest))
            result = TopDistributions(ids.long(), probs, totals, rest)
        elif self.result is not None:
            full = _tensor(self.result)
            result = full if mask is None else torch.zeros(mask.shape).masked_scatter_(mask, full)
        certainty = None if self.certainty is None else _tensor(self.certainty)
        return Answer(result, self.seconds, self.read, self.computed, certainty, self.kept_bytes)


@dataclass(frozen=True)
class ForwardReply:
    """The answers of a step.

    Attributes:
        answers: In the order of the asks.
        times: How long the member's forwards take.
        cache_bytes: Memory of its KV cache.
        document_cache: What it keeps of documents.
    """

    answers: Sequence[AnswerMessage]
    times: TimesSnapshot
    cache_bytes: int
    document_cache: DocumentCache


@dataclass(frozen=True)
class FetchMessage:
    """A `Fetch`."""

    request_id: str
    end: int
    ids: Array | None

    @classmethod
    def of(cls, fetch: Fetch) -> FetchMessage:
        """Returns the message of a fetch."""
        return cls(fetch.request_id, fetch.end, None if fetch.ids is None else _array(fetch.ids.int()))

    def fetch(self) -> Fetch:
        """Returns the fetch."""
        return Fetch(self.request_id, self.end, None if self.ids is None else _tensor(self.ids).long())


@dataclass(frozen=True)
class FetchReply:
    """Probabilities, float32, by fetch."""

    rows: Sequence[Array | FailureMessage]

    @classmethod
    def of(cls, rows: Sequence[Tensor | Failure], process: str) -> FetchReply:
        """Returns the message of fetched rows."""
        return cls([FailureMessage.of(row, process) if isinstance(row, Failure) else _array(row) for row in rows])

    def tensors(self) -> list[Tensor | Failure]:
        """Returns the rows, on the CPU."""
        return [row.failure() if isinstance(row, FailureMessage) else _tensor(row) for row in self.rows]


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)


def encode(message: object) -> bytes:
    """Returns a message as bytes."""
    return pickle.dumps(message, protocol=5)


def decode(parts: Sequence[bytes]) -> Any:
    """Returns the message of bytes that may be in parts."""
    return pickle.loads(parts[0] if len(parts) == 1 else b"".join(parts))


def split(data: bytes) -> list[bytes]:
    """Returns bytes in parts of `PART_BYTES` at most."""
    return [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
