"""A caller's arguments as a call: checked, with an id and a deadline; and the log of refused requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gac_core.chat.conversation import Prompt
from gac_core.checks import check_list
from gac_core.decoding.request import Request
from gac_core.engine.deadline import Deadline
from gac_core.engine.input_processor import InputProcessor, as_label, resolved
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
)
from gac_core.sampling import SamplingParams

logger = logging.getLogger(__name__)

# Errors whose messages contain no text of a prompt.
_LOGGABLE = (QueueFullError, EngineStuckError, EngineClosedError, RequestTimeoutError, PromptTooLongError)


@dataclass(frozen=True)
class Call:
    """One call of `Ensemble.generate` or a method like it.

    Attributes:
        ask: Makes the request and the processor of its output; rendering a long prompt takes time. Keeps the ensemble's
            input processor alive.
        label: The request's id, as the caller sees it.
        deadline: Its deadline.
    """

    ask: Callable[[], tuple[Request, OutputProcessor]]
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


def new_call(
    session: Session,
    input_processor: InputProcessor,
    prompt: Prompt,
    params: SamplingParams | None,
    overrides: Mapping[str, Any],
    request_id: str | None,
) -> Call:
    """Returns a call; its time begins now.

    Raises:
        EngineClosedError: This process was forked after loading.
        RequestError: An argument is wrong.
    """
    session.check_process()
    label = as_label(request_id)
    with reported(label):
        asked = resolved(params, overrides)
    return Call(lambda: input_processor.request(prompt, asked, {}, label), label, Deadline(asked.timeout))


def new_calls(
    session: Session,
    input_processor: InputProcessor,
    prompts: Sequence[Prompt],
    params: SamplingParams | None,
    overrides: Mapping[str, Any],
    request_ids: Sequence[str | None] | None,
) -> list[Call]:
    """Returns a call for each of several prompts; errors as in `new_call`."""
    prompts = check_list(RequestError, "prompts", prompts, "prompts")
    given = [None] * len(prompts) if request_ids is None else request_ids
    labels = check_list(RequestError, "request_ids", given, "strings")
    if len(labels) != len(prompts):
        raise RequestError(f"{len(labels)} request_ids for {len(prompts)} prompts; give one each")
    return [
        new_call(session, input_processor, prompt, params, overrides, label)
        for prompt, label in zip(prompts, labels, strict=True)
    ]
