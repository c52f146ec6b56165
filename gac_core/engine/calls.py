"""A caller's arguments as a call: checked, with an id and a deadline; and the log of refused requests."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from gac_core.chat.conversation import Prompt
from gac_core.checks import check_list
from gac_core.engine.continuation_text import Continuation
from gac_core.engine.deadline import Deadline
from gac_core.engine.output_processor import OutputProcessor
from gac_core.engine.session import Session
from gac_core.errors import (
    EngineClosedError,
    EngineStuckError,
    GaCError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    quote,
)
from gac_core.sampling import SamplingParams, resolved
from gac_core.voices import AnyPrompt

if TYPE_CHECKING:
    from gac_core.decoding.request import Request
    from gac_core.engine.input_processor import InputProcessor

logger = logging.getLogger(__name__)

# Errors whose messages contain no text of a prompt.
_LOGGABLE = (QueueFullError, EngineStuckError, EngineClosedError, RequestTimeoutError, PromptTooLongError)


Answering: TypeAlias = "tuple[Request, OutputProcessor]"
"""A request, and the processor of its output."""


@dataclass(frozen=True)
class Call:
    """One call of `Ensemble.generate` or a method like it.

    Attributes:
        ask: Makes the requests, one for each answer, and the processors of their outputs; rendering a long prompt takes
            time. Keeps the ensemble's input processor alive.
        label: The request's id, as the caller sees it.
        deadline: Its deadline.
    """

    ask: Callable[[], Sequence[Answering]]
    label: str
    deadline: Deadline


@contextmanager
def reported(label: str) -> Iterator[None]:
    """Sets the request id of errors, and logs them without any text of the request."""
    try:
        yield
    except GaCError as error:
        error.request_id = label
        logger.log(
            logging.INFO if isinstance(error, RequestError) else logging.WARNING,
            "request %s not answered: %s",
            label,
            f"{type(error).__name__}: {error}" if isinstance(error, _LOGGABLE) else type(error).__name__,
            extra={"request_id": label, "member": getattr(error, "member", None)},
        )
        raise


def as_label(request_id: object) -> str:
    """Returns a caller's id of a request, or a new one for None.

    Raises:
        RequestError: It is not a printable string of 1 to 200 characters.
    """
    if request_id is None:
        return uuid.uuid4().hex
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 200 or not request_id.isprintable():
        raise RequestError(f"request_id must be a string of 1 to 200 printable characters, not {quote(request_id)}")
    return str.__str__(request_id)


Task = Callable[[SamplingParams, str], Answering]
"""Makes a request, and the processor of its output, from its parameters and the id that its caller sees."""

ChoicesTask = Callable[[SamplingParams, str], Sequence[Answering]]
"""`Task` for several answers to one prompt."""


def new_call(
    session: Session,
    task: Task,
    params: SamplingParams | None,
    overrides: Mapping[str, Any],
    request_id: str | None,
) -> Call:
    """Returns a call; its time begins now.

    Raises:
        EngineClosedError: This process was forked after loading.
        RequestError: An argument is wrong.
    """
    return new_choices_call(session, lambda asked, label: [task(asked, label)], params, overrides, request_id)


def new_choices_call(
    session: Session,
    task: ChoicesTask,
    params: SamplingParams | None,
    overrides: Mapping[str, Any],
    request_id: str | None,
) -> Call:
    """`new_call` for several answers to one prompt."""
    session.check_process()
    label = as_label(request_id)
    with reported(label):
        asked = resolved(params, overrides)
    return Call(lambda: task(asked, label), label, Deadline(asked.timeout))


def new_calls(
    session: Session,
    tasks: Sequence[Task],
    params: SamplingParams | None,
    overrides: Mapping[str, Any],
    request_ids: Sequence[str | None] | None,
) -> list[Call]:
    """Returns a call for each of several tasks; errors as in `new_call`."""
    given = [None] * len(tasks) if request_ids is None else request_ids
    labels = check_list(RequestError, "request_ids", given, "strings")
    if len(labels) != len(tasks):
        raise RequestError(f"{len(labels)} request_ids for {len(tasks)} requests; give one each")
    return [new_call(session, task, params, overrides, label) for task, label in zip(tasks, labels, strict=True)]


def answers(input_processor: InputProcessor, prompts: Sequence[AnyPrompt]) -> list[Task]:
    """Returns the tasks of answering prompts.

    Raises:
        RequestError: It is no list of prompts.
    """
    return [
        partial(_answer, input_processor, prompt) for prompt in check_list(RequestError, "prompts", prompts, "prompts")
    ]


def _answer(input_processor: InputProcessor, prompt: AnyPrompt, params: SamplingParams, label: str) -> Answering:
    return input_processor.request(prompt, params, {}, label)


def scores(input_processor: InputProcessor, pairs: Sequence[tuple[Prompt, Continuation]]) -> list[Task]:
    """Returns the tasks of scoring continuations.

    Args:
        input_processor: Makes the requests.
        pairs: Each a prompt and its continuation.

    Raises:
        RequestError: It is no list of pairs.
    """
    return [
        partial(input_processor.score_request, prompt, continuation)
        for prompt, continuation in checked_pairs("pairs", pairs)
    ]


def checked_pairs(what: str, pairs: object) -> list[tuple[Any, Any]]:
    """Returns pairs of a prompt and its continuation.

    Args:
        what: Name of the argument.
        pairs: Its value.

    Raises:
        RequestError: It is no list of pairs.
    """
    given = check_list(RequestError, what, pairs, "pairs of a prompt and its continuation")
    for index, pair in enumerate(given):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise RequestError(f"{what}[{index}] must be a prompt and its continuation, not {quote(pair)}")
    return [(prompt, continuation) for prompt, continuation in given]
