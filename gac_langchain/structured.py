"""Answers as values of a schema: which grammar or tool enforces it, and which of LangChain's parsers reads it."""

from __future__ import annotations

import json
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

from gac_core import RequestError, quote
from gac_langchain.convert import recursive_schema, to_tools


def _check(result: Sequence[Generation], calls: bool) -> None:
    """Refuses an answer that ended before its JSON did, which LangChain's parsers would complete by themselves.

    Raises:
        OutputParserException: It did.
    """
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    if not isinstance(message, AIMessage):
        return
    reason = message.response_metadata.get("finish_reason")
    # A stream tells its reason at its end.
    if reason is None or (message.tool_calls if calls else _is_json(message.text)):
        return
    broken = "".join(str(call.get("args")) for call in message.invalid_tool_calls) if calls else message.text
    place = "within its call" if calls else f"after {broken[-40:]!r}"
    raise OutputParserException(
        f"the answer is not whole: it ended ({reason}) {place}; raise max_tokens and give no stop strings",
        llm_output=broken,
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class _WholeJson(JsonOutputParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=False)
        return super().parse_result(result, partial=partial)


class _WholePydantic(PydanticOutputParser[Any]):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=False)
        return super().parse_result(result, partial=partial)


class _WholeCall(JsonOutputKeyToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=True)
        return super().parse_result(result, partial=partial)


class _WholePydanticCall(PydanticToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check(result, calls=True)
        return super().parse_result(result, partial=partial)


def response_format(schema: dict[str, Any] | type, method: str, strict: bool | None = None) -> dict[str, Any]:
    """Returns what a call is asked for, in OpenAI's form; arguments as in `ChatGaC.with_structured_output`."""
    if method == "json_mode":
        return {"type": "json_object"}
    wanted = _json_schema(schema, strict)
    return {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}


def _json_schema(schema: dict[str, Any] | type, strict: bool | None) -> dict[str, Any]:
    """The JSON schema of whatever LangChain takes for one, OpenAI's wrappings of one included."""
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
        RequestError: The method is none of those.
    """
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    shown = {"kwargs": {"method": method}, "schema": schema}
    parser: Any
    if method == "function_calling":
        tool = to_tools([schema], strict)[0]
        name = tool["function"]["name"]
        bound = chat.bind_tools(
            [tool], tool_choice=name, parallel_tool_calls=False, ls_structured_output_format=shown, **kwargs
        )
        parser = (
            _WholePydanticCall(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
            if is_class
            else _WholeCall(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        wanted = response_format(schema, method, strict)
        bound = chat.bind(response_format=wanted, ls_structured_output_format=shown, **kwargs)
        parser = _WholePydantic(pydantic_object=schema) if is_class else _WholeJson()  # type: ignore[arg-type]
    else:
        raise RequestError(f"method must be 'json_schema', 'function_calling' or 'json_mode', not {quote(method)}")
    if not include_raw:
        plain: Runnable[LanguageModelInput, Any] = bound | parser
        return plain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    with_error = parsed.with_fallbacks([failed], exception_key="parsing_error")
    # The model stands first, since that is the only step which gets a later call's arguments.
    both: Runnable[LanguageModelInput, Any] = bound | RunnableMap(raw=RunnablePassthrough()) | with_error
    return both
