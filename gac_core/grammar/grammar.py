"""Grammars as values: JSON schemas, regular expressions, Lark grammars, choices and tool calls.

A grammar is text in llguidance's dialect of Lark, which `compiler` compiles.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gac_core.chat.callforms import call_rules
from gac_core.checks import check_flag, check_list, check_text
from gac_core.errors import GaCError, GrammarError, quote, shorten
from gac_core.grammar.plainjson import MAX_CHARACTERS, MAX_VALUES, PlainJson
from gac_core.grammar.schema import to_enforceable


@dataclass(frozen=True)
class Grammar:
    """A constraint on generated text, given as `SamplingParams.grammar`; created by the class methods.

    Attributes:
        kind: ``"json_schema"``, ``"regex"``, ``"lark"``, ``"choices"`` or ``"tools"``.
        lark: The grammar in llguidance's dialect of Lark.
        answer: The grammar that ``lark`` refers to as ``@answer``. Default None.
        tools: For tool calls: pairs of a tool's name and the JSON schema of its arguments, as JSON. Default none.
        closes: Whether the text is closed within ``max_tokens``; JSON schemas only. Default False.

    Raises:
        GrammarError: A field has another type, or the grammar is too large.
    """

    kind: str
    lark: str
    answer: Grammar | None = None
    tools: tuple[tuple[str, str], ...] = ()
    closes: bool = False

    def __post_init__(self) -> None:
        for field in ("kind", "lark"):
            remedy = "create grammars with the class methods, such as Grammar.json_schema"
            value = check_text(GrammarError, f"the {field} of a grammar", getattr(self, field), remedy)
            if len(value) > MAX_CHARACTERS:
                kind = shorten(self.kind, 40)
                raise GrammarError(
                    f"the grammar ({kind}) has {len(value)} characters, more than {MAX_CHARACTERS}; make it smaller"
                )
        check_flag(GrammarError, "closes", self.closes)
        parts = self.tools if isinstance(self.tools, tuple) else (None,)
        if not all(isinstance(part, tuple) and [type(text) for text in part] == [str, str] for part in parts):
            raise GrammarError(f"the tools of a grammar must be pairs of strings, not {quote(self.tools)}; {remedy}")
        _check_answer(self.answer)

    def __repr__(self) -> str:
        # Short but unique, because caches of frameworks use it as a key.
        closes = ", closes=True" if self.closes else ""
        return f"Grammar(kind={self.kind!r}, digest={hashlib.sha256(self.source.encode()).hexdigest()[:16]!r}{closes})"

    @cached_property
    def source(self) -> str:
        """The text that llguidance compiles."""
        parts = [{"name": "main", "lark_grammar": self.lark}]
        if self.answer is not None:
            parts.append({"name": "answer", "lark_grammar": self.answer.lark})
        return json.dumps({"grammars": parts})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, closes: bool = False) -> Grammar:
        """JSON text that is valid under a schema, spaced as ``{"a": 1, "b": [2, 3]}``.

        An object with ``properties`` has no other properties unless the schema mentions ``additionalProperties``:
        consumers do not expect undeclared properties. A ``format`` other than date-time, time, date, duration, email,
        hostname, ipv4, ipv6, uri and uuid is an annotation.

        Args:
            schema: A JSON schema (draft 2020-12 or older) as a mapping or as JSON.
            closes: Whether to close the text within the request's ``max_tokens``: as they run out, lists get no further
                items, optional properties are omitted and strings end. ``finish_reason`` is then ``"length"``. A text
                that the schema does not allow to end in time is still cut off. Default False: any text may be cut off.

        Raises:
            GrammarError: The schema is not a JSON object. Schemas that cannot be enforced are rejected by the request.
        """
        return cls("json_schema", f"start: %json {_enforceable('a JSON schema', schema)}", closes=closes)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches completely (Rust syntax, without look-around).

        Raises:
            GrammarError: The pattern is empty or not a string, or has the flag x on several lines.
        """
        pattern = check_text(GrammarError, "a regular expression", pattern)
        if "\n" in pattern and re.search(r"\(\?[a-zA-Z]*x", pattern):
            raise GrammarError("a regular expression with the flag x must be on one line; remove the line breaks")
        return cls("regex", f"start: TEXT\nTEXT: /{_escape(pattern)}/")

    @classmethod
    def lark_grammar(cls, text: str) -> Grammar:
        """Text that a Lark grammar derives from its rule ``start`` (llguidance's dialect).

        Raises:
            GrammarError: The grammar is empty or not a string.
        """
        if not check_text(GrammarError, "a Lark grammar", text).strip():
            raise GrammarError(f"a Lark grammar must have a rule start, not {quote(text)}")
        return cls("lark", text)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """Exactly one of the given texts.

        Raises:
            GrammarError: There are no texts or too many, or one is empty or not a string.
        """
        if isinstance(texts, Sized) and len(texts) > MAX_VALUES:
            raise GrammarError(f"choices has {len(texts)} texts, more than {MAX_VALUES}; give fewer")
        listed = check_list(GrammarError, "choices", texts, "strings that are not empty")
        if not listed:
            raise GrammarError("choices must be a list of at least one string, not empty")
        checked = [check_text(GrammarError, "each of the choices", text) for text in listed]
        # One terminal, because llguidance allows only 2,000 alternatives of a rule at a time.
        return cls("choices", "start: TEXT\nTEXT: " + " | ".join(json.dumps(text) for text in dict.fromkeys(checked)))

    @classmethod
    def tool_calls(
        cls,
        tools: Mapping[str, Mapping[str, Any]],
        required: bool = False,
        parallel: bool = True,
        answer: Grammar | None = None,
        inside: bool = False,
    ) -> Grammar:
        """Text and tool calls.

        A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. Where calls are not required, an answer
        may also consist of calls in other forms (`callforms`): as soon as its beginning names a tool in such a form, it
        must be completed as calls. Everywhere else such text is plain text. Reasoning in ``<think>`` tags at the
        beginning is not restricted and may precede both.

        Args:
            tools: JSON schema of the arguments by name of the tool, at least one.
            required: Whether the answer must consist of one or more calls. Default False: text that may end in calls.
            parallel: Whether an answer may contain several calls. Default True.
            answer: Grammar of an answer without calls. Default None: any text, which may end in calls. Beside a JSON
                schema, a call may be a JSON object without tags.
            inside: Whether the prompt has already opened the reasoning block. Default False.

        Raises:
            GrammarError: There is no tool, a schema is not a JSON object, or ``answer`` is given with ``required``.
        """
        check_flag(GrammarError, "required", required)
        check_flag(GrammarError, "parallel", parallel)
        _check_answer(answer)
        schemas = _checked_schemas(tools)
        if answer is not None and (required or answer.answer is not None):
            raise GrammarError(
                "answer must be None where tool calls are required, and must not be a grammar of tool calls itself"
            )
        rules = [f"arguments{index}: %json {schema}" for index, schema in enumerate(schemas.values())]
        bodies = [
            f'"{{\\"name\\": " {json.dumps(json.dumps(name))} ", \\"arguments\\": " arguments{index} "}}"'
            for index, name in enumerate(schemas)
        ]
        rules.append(f'body: GAP ({" | ".join(bodies)}) GAP "</tool_call>"')
        # Templates put a line break on either side of the call; other white space is not needed.
        rules += ["GAP: /\\n?/", 'calls: "<tool_call>" body' + (' (GAP "<tool_call>" body)*' if parallel else "")]
        if required:
            rules.append("content: calls")
        elif answer is not None:
            rules.append(f"content: calls | @answer{_bare_calls(tools, answer)}")
        else:
            rules += [*_FREE_TEXT, *call_rules(list(schemas), parallel)]
            rules.append(f"content: forms | {'called* text' if parallel else 'called | text'}")
        return cls(
            "tools",
            "\n".join([*rules, *_start(required or answer is not None, inside, parallel)]),
            answer,
            tuple(schemas.items()),
        )


MAX_TOOLS = 1000
"""Most tools of a grammar; each tool adds about twenty rules."""

# Lazy rules end at their first match; competing with `text`, they divide a text at its tags.
_FREE_TEXT = (
    "called: opening body",
    "opening[lazy]: OPENING",
    "OPENING: /(.|\\n)*<tool_call>/",
    "text: TEXT",
    "TEXT: /(.|\\n)*/",
)
_REFERENCE = re.compile(r'"\$ref": "([^"]*)"')
_THINK = r"[ \t\r\n]*<think>(.|\n)*"


def _start(is_bound: bool, inside: bool, parallel: bool) -> list[str]:
    """The rules for reasoning before the content."""
    if inside:
        reasoning = [r"reasoning[lazy]: /(.|\n)*<\/think>/", r"BREAK: /[ \t\r\n]{0,4}/"]
        return [*reasoning, "start: reasoning BREAK content" if is_bound else "start: reasoning content | text"]
    if is_bound:
        return ["start: content"]
    # Without the tag at the beginning, the text up to the first call is content, not reasoning.
    called = "(first body called*) text" if parallel else "first body"
    return [
        f"reasoning[lazy]: /{_THINK}<\\/think>/",
        "first[lazy]: FIRST",
        f"FIRST: OPENING & ~/{_THINK}/",
        f"start: reasoning content | forms | {called} | text",
    ]


def _bare_calls(tools: Mapping[str, Mapping[str, Any]], answer: Grammar) -> str:
    """Calls without tags beside an answer in JSON, as JSON schemas, because both may begin with the same text."""
    if answer.kind != "json_schema":
        return ""
    rules = ""
    for name, schema in tools.items():
        schema = PlainJson(GrammarError, f"the schema of tool {quote(name)}").copy(schema)
        # References start at the root, so that the definitions are moved there.
        moved = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        if all(target.startswith(("#/$defs/", "#/definitions/")) for target in _REFERENCE.findall(json.dumps(schema))):
            arguments = {key: value for key, value in schema.items() if key not in moved}
            properties = {"name": {"const": name}, "arguments": arguments}
            call = {**moved, "type": "object", "properties": properties, "required": list(properties)}
            rules += f" | %json {_enforceable(f'the schema of tool {quote(name)}', call)}"
    return rules


def _checked_schemas(tools: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The schema of each tool as JSON that can be enforced."""
    if not isinstance(tools, Mapping):
        raise GrammarError(f"tools must be a mapping of names to JSON schemas, not {quote(tools)}")
    if not tools:
        raise GrammarError("tools must have at least one tool, not none")
    schemas: dict[str, str] = {}
    for name, schema in tools.items():
        check_text(GrammarError, "the name of a tool", name)
        if len(schemas) >= MAX_TOOLS:
            raise GrammarError(f"there are {len(tools)} tools, more than {MAX_TOOLS}; give fewer")
        if not isinstance(schema, Mapping):
            raise GrammarError(f"the schema of tool {quote(name)} must be a mapping, not {quote(schema)}")
        schemas[name] = _enforceable(f"the schema of tool {quote(name)}", schema)
    return schemas


def _check_answer(answer: object) -> None:
    if answer is not None and not isinstance(answer, Grammar):
        raise GrammarError(f"answer must be a Grammar or None, not {quote(answer)}")


def _enforceable(what: str, schema: Any) -> str:
    """Returns the result of `to_enforceable`; raises a `GrammarError` for every error."""
    try:
        return to_enforceable(schema)
    except GaCError as error:
        raise GrammarError(f"{what} cannot be enforced: {error}") from error
    except Exception as error:
        # Mappings of callers may raise any exception, and values that are not checked may fail anywhere.
        reason = f"{type(error).__name__}: {error}"
        raise GrammarError(f"{what} is not a valid JSON schema ({shorten(reason)}): {quote(schema)}") from error


def _escape(pattern: str) -> str:
    """The pattern with slashes and line breaks escaped, for use between slashes."""
    out, escaped = [], False
    for char in pattern:
        if char == "\n":
            # After a backslash, a line break stands for itself as well.
            char = "n" if escaped else "\\n"
        out.append("\\/" if char == "/" and not escaped else char)
        escaped = char == "\\" and not escaped
    return "".join(out)
