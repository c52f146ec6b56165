"""Answers as values of a schema: which grammar or tool enforces it, and which of LangChain's parsers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import JsonOutputKeyToolsParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from gac_core import RequestError


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
        tool = convert_to_openai_tool(schema, strict=strict)
        name = tool["function"]["name"]
        bound = chat.bind_tools(
            [tool], tool_choice=name, parallel_tool_calls=False, ls_structured_output_format=shown, **kwargs
        )
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
            if is_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        wanted: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            json_schema = convert_to_json_schema(schema, strict=strict)
            wanted = {
                "type": "json_schema",
                "json_schema": {"name": json_schema.get("title", "answer"), "schema": json_schema},
            }
        bound = chat.bind(response_format=wanted, ls_structured_output_format=shown, **kwargs)
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()  # type: ignore[arg-type]
    else:
        raise RequestError(f"method must be 'json_schema', 'function_calling' or 'json_mode', not {method!r}")
    if not include_raw:
        plain: Runnable[LanguageModelInput, Any] = bound | parser
        return plain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    with_error = parsed.with_fallbacks([failed], exception_key="parsing_error")
    # The model stands first, since that is the only step which gets a later call's arguments.
    both: Runnable[LanguageModelInput, Any] = bound | RunnableMap(raw=RunnablePassthrough()) | with_error
    return both
