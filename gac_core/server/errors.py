"""Errors as bodies of OpenAI's form, with the HTTP status, type and code of each class of exceptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from gac_core.errors import (
    AnswerError,
    EngineClosedError,
    EngineStuckError,
    GaCError,
    GrammarError,
    MemberError,
    MemberLostError,
    MemberTimeoutError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    UnknownArgumentError,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RETRY_AFTER = 1
"""Seconds after which a refused request may be sent again."""


class ApiError(Exception):
    """An error as the client sees it.

    Args:
        status: HTTP status; 499 for a client that has left.
        code: What went wrong, from a fixed set: docs/server.md lists them.
        message: The field, the value and a remedy.
        type: OpenAI's type of the error. Default ``"invalid_request_error"``.
        param: Path of the field that is wrong, such as ``messages[0].content``; None where no field is.
        headers: Headers of the response. Default none.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """Returns the body of the response."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                "request_id": request_id,
            }
        }


class UnknownModelError(ApiError):
    """No model has the requested id.

    Args:
        message: The id and the models that there are.
    """

    def __init__(self, message: str) -> None:
        super().__init__(404, "model_not_found", message, param="model")


def internal_error() -> ApiError:
    """Returns the error of an exception that is not expected, whose message is not shown to clients."""
    return ApiError(500, "internal_error", "internal error; the log has the details by request id", type=SERVER_ERROR)


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Returns an exception as the client sees it.

    Args:
        error: The exception.
        param: The field of the request's body that a `RequestError` is about. Default: not known.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, _request_code(error), str(error), param=param)
    if not isinstance(error, GaCError):
        return internal_error()
    status, code = _server_code(error)
    headers = {"retry-after": str(RETRY_AFTER)} if status in (429, 503) else None
    kind = "rate_limit_error" if status == 429 else SERVER_ERROR
    return ApiError(status, code, str(error), type=kind, headers=headers)


def _request_code(error: RequestError) -> str:
    if isinstance(error, PromptTooLongError):
        return "context_length_exceeded"
    if isinstance(error, UnknownArgumentError):
        return "unknown_parameter"
    return "invalid_grammar" if isinstance(error, GrammarError) else "invalid_value"


def _server_code(error: GaCError) -> tuple[int, str]:
    """Returns the status and code of an error that is not the request's."""
    if isinstance(error, QueueFullError):
        return 429, "queue_full"
    if isinstance(error, RequestTimeoutError):
        return 504, "request_timeout"
    if isinstance(error, (MemberLostError, MemberTimeoutError)):
        return 503, "member_failed"
    if isinstance(error, MemberError):
        return 500, "member_failed"
    if isinstance(error, EngineStuckError):
        return 503, "engine_stuck"
    if isinstance(error, EngineClosedError):
        return 503, "engine_closed"
    return 500, "answer_error" if isinstance(error, AnswerError) else "internal_error"


def error_response(scope: Mapping[str, Any], error: ApiError) -> Response:
    """Returns the response of an error, and notes it in the request's record.

    Args:
        scope: The ASGI scope of the request, which holds its `OpenRecord`.
        error: The error.
    """
    record = scope["state"]["record"]
    record.error = error.code
    content = json.dumps(error.body(record.request_id)).encode()
    return Response(content, error.status, headers=error.headers, media_type="application/json")
