"""Structured output for LangChain: the response format or tool call that enforces a schema, and the parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputKeyToolsParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from gac_core import (
    AnswerError,
    InvalidToolCall,
    RequestError,
    check_tool_calls,
    quote,
    read_json_answer,
    recursive_schema,
)
from gac_langchain.convert import to_tools


def _check(result: Sequence[Generation], calls: bool) -> None:
    """Checks that an answer is complete; LangChain's parsers would complete truncated JSON on their own.

    Raises:
        OutputParserException: It ended before its JSON or its tool call did.
    """
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    if not isinstance(message, AIMessage):
        return
    # Only the last chunk of a stream has a reason.
    reason = message.response_metadata.get("finish_reason")
    if reason is None:
        return
    try:
        if calls:
            invalid = [
                InvalidToolCall(call["id"] or "", call["name"], call["args"] or "", call["error"] or str(reason))
                for call in message.invalid_tool_calls
            ]
            check_tool_calls(message.tool_calls, invalid, text=message.text, finish_reason=reason, required=True)
        else:
            read_json_answer(message.text, reason)
    except AnswerError as error:
        raise OutputParserException(str(error), llm_output=error.text) from error


class _CompleteJson(JsonOutputParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=False)
        return super().parse_result(result, partial=partial)


class _CompletePydantic(PydanticOutputParser[Any]):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=False)
        return super().parse_result(result, partial=partial)


class _CompleteCall(JsonOutputKeyToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=True)
        return super().parse_result(result, partial=partial)


class _CompletePydanticCall(PydanticToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=True)
        return super().parse_result(result, partial=partial)


def response_format(schema: dict[str, Any] | type, method: str, strict: bool | None = None) -> dict[str, Any]:
    """Returns a call's ``response_format`` in OpenAI's form; arguments as in `ChatGaC.with_structured_output`."""
    if method == "json_mode":
        return {"type": "json_object"}
    wanted = _json_schema(schema, strict)
    return {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}


def _json_schema(schema: dict[str, Any] | type, strict: bool | None) -> dict[str, Any]:
    """Returns the JSON schema of a class or mapping, also of one that is wrapped in OpenAI's forms."""
    if isinstance(schema, dict):
        inner = schema.get("json_schema") if schema.get("type") == "json_schema" else schema
        if isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
            return {"title": inner.get("name", "answer"), **inner["schema"]}
        if "$schema" in schema or {"type", "anyOf", "oneOf", "allOf", "$ref", "enum", "const"} & set(schema):
            return schema
    return recursive_schema(schema) or convert_to_json_schema(schema, strict=strict)


def structured(
    chat: BaseChatModel,
    schema: dict[str, Any] | type,
    method: str,
    include_raw: bool,
    strict: bool | None,
    kwargs: Mapping[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """Returns a runnable whose answers are values of a schema; arguments as in `ChatGaC.with_structured_output`.

    Raises:
        RequestError: Unknown method.
    """
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced = {"kwargs": {"method": method}, "schema": schema}
    parser: Any
    if method == "function_calling":
        tool = to_tools([schema], strict)[0]
        name = tool["function"]["name"]
        bound = chat.bind_tools(
            [tool], tool_choice=name, parallel_tool_calls=False, ls_structured_output_format=traced, **kwargs
        )
        parser = (
            _CompletePydanticCall(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
            if is_class
            else _CompleteCall(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        wanted = response_format(schema, method, strict)
        bound = chat.bind(response_format=wanted, ls_structured_output_format=traced, **kwargs)
        parser = _CompletePydantic(pydantic_object=schema) if is_class else _CompleteJson()  # type: ignore[arg-type]
    else:
        raise RequestError(f"method must be 'json_schema', 'function_calling' or 'json_mode', not {quote(method)}")
    return _with_raw(bound, parser) if include_raw else bound | parser


def _with_raw(bound: Runnable[LanguageModelInput, AIMessage], parser: Any) -> Runnable[LanguageModelInput, Any]:
    """Returns a runnable that gives the message, its parsed value and the parser's error."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    with_error = parsed.with_fallbacks([failed], exception_key="parsing_error")
    # A sequence passes a call's arguments to its first step only.
    return bound | RunnableMap(raw=RunnablePassthrough()) | with_error
