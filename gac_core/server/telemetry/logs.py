"""Logs: one JSON object per line on stdout, for this library, the HTTP server and each request."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

from transformers.utils import logging as transformers_logging

from gac_core.checks import check_option
from gac_core.errors import ConfigError
from gac_core.server.access.auth import OPEN_PATHS
from gac_core.server.record import RequestRecord
from gac_core.server.settings import LOG_LEVELS

logger = logging.getLogger("gac_core.server.requests")

EXTRAS = (
    "event",
    "request_id",
    "member",
    "route",
    "model",
    "status",
    "stream",
    "seconds",
    "first_token_seconds",
    "prompt_tokens",
    "documents",
    "completion_tokens",
    "share_ensembled",
    "finish_reason",
    "error",
    "prompt",
    "answers",
)
"""What records may carry besides their message; everything else is left out."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON in ASCII, so that no value can forge a line.

    Args:
        log_prompts: Whether exceptions have their messages, which may quote prompts. Without it a traceback consists of
            the types of the exceptions and the lines of code, and records of asyncio of their first line: the others
            describe the task that failed, with its exception.
    """

    def __init__(self, log_prompts: bool = False) -> None:
        super().__init__()
        self._log_prompts = log_prompts

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level = record.levelname.lower()
        message = record.getMessage()
        if record.name == "asyncio" and not self._log_prompts:
            message = message.partition("\n")[0]
        values = {"time": time, "level": level, "logger": record.name, "message": message}
        values |= {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}
        if record.exc_info and record.exc_info[1] is not None:
            values["traceback"] = self._traceback(record.exc_info[1])
        return json.dumps(values, default=str)

    def _traceback(self, error: BaseException) -> str:
        if self._log_prompts:
            return "".join(traceback.format_exception(error))
        return "".join(_without_messages(error))


def _without_messages(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """Yields the lines of a traceback, causes first, without what the exceptions say."""
    if id(error) in seen:
        return
    seen |= {id(error)}
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _without_messages(before, seen)
        yield "which led to:\n"
    yield from traceback.format_tb(error.__traceback__)
    if isinstance(error, BaseExceptionGroup):
        for nested in error.exceptions:
            yield from _without_messages(nested, seen)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"


class RequestLog:
    """An observer that logs each request: one record at the level info, or warning from status 500 on.

    Requests of probes and monitoring that succeed are logged at the level debug.

    Args:
        log_prompts: Whether prompts and answers are part of it.
    """

    def __init__(self, log_prompts: bool = False) -> None:
        self._log_prompts = log_prompts

    def __call__(self, record: RequestRecord) -> None:
        """Logs one request."""
        level = logging.INFO if record.status < 500 else logging.WARNING
        if record.status < 400 and record.route in OPEN_PATHS:
            level = logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra=self._values(record))

    def _values(self, record: RequestRecord) -> dict[str, object]:
        outputs = record.outputs
        steps = sum(output.stats.steps for output in outputs)
        values: dict[str, object] = {
            "event": "request",
            "request_id": record.request_id,
            "route": record.route,
            "model": record.model,
            "status": record.status,
            "stream": record.stream,
            "seconds": round(record.seconds, 6),
            "first_token_seconds": None if record.first_token_seconds is None else round(record.first_token_seconds, 6),
            "prompt_tokens": record.prompt_tokens or None,
            "documents": record.documents or None,
            "completion_tokens": record.streamed_tokens or None,
            "share_ensembled": sum(o.stats.steps_ensembled for o in outputs) / steps if steps else None,
            "finish_reason": ",".join(output.finish_reason.value for output in outputs) or None,
            "error": record.error,
        }
        if self._log_prompts:
            values["prompt"] = record.prompt
            values["answers"] = [output.reasoning + output.text for output in outputs]
        return values


def configure_logs(level: str = "info", log_prompts: bool = False, stream: TextIO | None = None) -> None:
    """Sends all records of this process to one stream, as JSON.

    Args:
        level: Least severe level of records of this library and of uvicorn, as `ServerSettings.log_level`; those of
            other libraries are logged from warnings on.
        log_prompts: As `ServerSettings.log_prompts`.
        stream: Where to. Default None: stdout.

    Raises:
        ConfigError: There is no such level.
    """
    level = check_option(ConfigError, "log_level", level, LOG_LEVELS)
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter(log_prompts))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("gac_core", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    # `RequestLog` takes its place.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(True)
    # A record that cannot be written, because the reader of stdout has gone, would be shown on stderr with a traceback.
    logging.raiseExceptions = False
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
