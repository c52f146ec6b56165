"""What a text must look like: a JSON schema, a regular expression, a Lark grammar, one of some choices, or tool calls.

Plain values that say it in the language of llguidance, which compiles them (`constraint`). Knows nothing of
vocabularies or requests.
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
from gac_core.grammar.schema import enforceable


@dataclass(frozen=True)
class Grammar:
    """What a text must look like; made by the class methods, given as `SamplingParams.grammar`.

    Attributes:
        kind: How it was made: ``"json_schema"``, ``"regex"``, ``"lark"``, ``"choices"`` or ``"tools"``.
        lark: The grammar in llguidance's dialect of Lark.
        answer: The grammar that ``lark`` calls ``@answer``, if it does.
        tools: Of tool calls the names and the schemas of the arguments, as JSON.
        closes: Whether the text is closed within ``max_tokens``; JSON schemas only.
    """

    kind: str
    lark: str
    answer: Grammar | None = None
    tools: tuple[tuple[str, str], ...] = ()
    closes: bool = False

    def __post_init__(self) -> None:
        for field in ("kind", "lark"):
            remedy = "make grammars by the class methods, such as Grammar.json_schema"
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
        # Short, but never the same for two: frameworks' caches go by it.
        closes = ", closes=True" if self.closes else ""
        return f"Grammar(kind={self.kind!r}, digest={hashlib.sha256(self.source.encode()).hexdigest()[:16]!r}{closes})"

    @cached_property
    def source(self) -> str:
        """What llguidance compiles."""
        parts = [{"name": "main", "lark_grammar": self.lark}]
        if self.answer is not None:
            parts.append({"name": "answer", "lark_grammar": self.answer.lark})
        return json.dumps({"grammars": parts})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, closes: bool = False) -> Grammar:
        """A JSON text that a schema allows, spaced as ``{"a": 1, "b": [2, 3]}``.

        An object whose ``properties`` are listed gets no others unless the schema speaks of ``additionalProperties``:
        what the schema merely does not forbid, nobody who reads the answer waits for. A ``format`` that is not among
        date-time, time, date, duration, email, hostname, ipv4, ipv6, uri and uuid is an annotation.

        Args:
            schema: A JSON schema (draft 2020-12 and older) as a mapping or as JSON.
            closes: Whether the text is closed within the request's ``max_tokens``: as they run out, lists get no
                further items, optional properties are left out and strings end. ``finish_reason`` is then ``"length"``.
                A text that the schema does not let end in time is still cut off. Default False: any text may be cut
                off.

        Raises:
            GrammarError: The schema is no JSON object. What a schema asks for that cannot be enforced is refused when
                a request comes with it, before any work.
        """
        return cls("json_schema", f"start: %json {_enforceable('a JSON schema', schema)}", closes=closes)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole (Rust's syntax, without look-around).

        Raises:
            GrammarError: The pattern is no string, or empty.
        """
        pattern = check_text(GrammarError, "a regular expression", pattern)
        if "\n" in pattern and re.search(r"\(\?[a-zA-Z]*x", pattern):
            raise GrammarError("write a regular expression with the flag x on one line, without comments")
        return cls("regex", f"start: TEXT\nTEXT: /{_escape(pattern)}/")

    @classmethod
    def lark_grammar(cls, text: str) -> Grammar:
        """A text that a Lark grammar derives from its rule ``start`` (llguidance's dialect).

        Raises:
            GrammarError: The grammar is no string, or empty.
        """
        if not check_text(GrammarError, "a Lark grammar", text).strip():
            raise GrammarError(f"a Lark grammar must have at least one rule, start; it is {quote(text)}")
        return cls("lark", text)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts, letter for letter.

        Raises:
            GrammarError: There is none, or one is no string or empty.
        """
        if isinstance(texts, Sized) and len(texts) > MAX_VALUES:
            raise GrammarError(f"there are {len(texts)} choices, more than {MAX_VALUES}; give fewer")
        listed = check_list(GrammarError, "choices", texts, "strings that are not empty")
        if not listed:
            raise GrammarError("choices must be a list of at least one string")
        checked = [check_text(GrammarError, "each of the choices", text) for text in listed]
        # One terminal: as alternatives of a rule they would be followed one by one, of which llguidance allows 2,000.
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
        """Text and calls of tools.

        A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. Where calls are not required, an answer
        may also consist of calls in one of the other forms that models write (`callforms`): as soon as its
        beginning names a tool in such a form, it must be completed as calls. Everywhere else such text remains text.
        Reasoning in ``<think>`` tags at the answer's beginning is not restricted and may precede either kind.

        Args:
            tools: Per tool's name the JSON schema of its arguments, at least one.
            required: Calls only, one or more. Default False: text, which may go over into calls.
            parallel: Whether more than one call may follow. Default True.
            answer: What a text without calls must look like. Default None: anything; it may then go over into calls.
                Beside a JSON schema, a call may be a JSON object without tags.
            inside: Whether the prompt has opened the reasoning already. Default False.

        Raises:
            GrammarError: There is no tool, a schema is no JSON object, or calls are required beside an answer.
        """
        if not isinstance(tools, Mapping):
            raise GrammarError(f"tools must be a mapping of names to JSON schemas, not {quote(tools)}")
        if not tools:
            raise GrammarError("tool calls need at least one tool")
        check_flag(GrammarError, "required", required)
        check_flag(GrammarError, "parallel", parallel)
        _check_answer(answer)
        if answer is not None and (required or answer.answer is not None):
            raise GrammarError("where tool calls are required there is no other answer; give one of both")
        schemas: dict[str, str] = {}
        for name, schema in tools.items():
            check_text(GrammarError, "the name of a tool", name)
            if len(schemas) >= MAX_TOOLS:
                raise GrammarError(f"there are {len(tools)} tools, more than {MAX_TOOLS}; give fewer")
            if not isinstance(schema, Mapping):
                raise GrammarError(f"the schema of tool {quote(name)} must be a mapping, not {quote(schema)}")
            schemas[name] = _enforceable(f"the schema of tool {quote(name)}", schema)
        rules = [f"arguments{index}: %json {schema}" for index, schema in enumerate(schemas.values())]
        bodies = [
            f'"{{\\"name\\": " {json.dumps(json.dumps(name))} ", \\"arguments\\": " arguments{index} "}}"'
            for index, name in enumerate(schemas)
        ]
        rules.append(f'body: GAP ({" | ".join(bodies)}) GAP "</tool_call>"')
        # A template may put a line break on either side of the call; more white space has no use.
        rules += ["GAP: /\\n?/", 'calls: "<tool_call>" body' + (' (GAP "<tool_call>" body)*' if parallel else "")]
        if required:
            rules.append("said: calls")
        elif answer is not None:
            rules.append(f"said: calls | @answer{_bare_calls(tools, answer)}")
        else:
            rules += [*_FREE_TEXT, *call_rules(list(schemas), parallel)]
            rules.append(f"said: forms | {'called* text' if parallel else 'called | text'}")
        return cls(
            "tools",
            "\n".join([*rules, *_start(required or answer is not None, inside, parallel)]),
            answer,
            tuple(schemas.items()),
        )


MAX_TOOLS = 1000
"""Each is part of some twenty rules."""

# Lazy rules end at their first match. Together with `text`, which they compete with, they divide a text at its tags.
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
    """The rules that put reasoning before what is said."""
    if inside:
        reasoning = [r"reasoning[lazy]: /(.|\n)*<\/think>/", r"BREAK: /[ \t\r\n]{0,4}/"]
        return [*reasoning, "start: reasoning BREAK said" if is_bound else "start: reasoning said | text"]
    if is_bound:
        return ["start: said"]
    # Without the tag at the beginning, the text up to the first call is what is said, not reasoning.
    called = "(first body called*) text" if parallel else "first body"
    return [
        f"reasoning[lazy]: /{_THINK}<\\/think>/",
        "first[lazy]: FIRST",
        f"FIRST: OPENING & ~/{_THINK}/",
        f"start: reasoning said | forms | {called} | text",
    ]


def _bare_calls(tools: Mapping[str, Mapping[str, Any]], answer: Grammar) -> str:
    """Calls without tags beside an answer in JSON: compiled as JSON schemas too, so that both can begin alike."""
    if answer.kind != "json_schema":
        return ""
    rules = ""
    for name, schema in tools.items():
        schema = PlainJson(GrammarError, f"the schema of tool {quote(name)}").copy(schema)
        # References are resolved from the top, to where the definitions are moved.
        moved = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        if all(target.startswith(("#/$defs/", "#/definitions/")) for target in _REFERENCE.findall(json.dumps(schema))):
            arguments = {key: value for key, value in schema.items() if key not in moved}
            properties = {"name": {"const": name}, "arguments": arguments}
            call = {**moved, "type": "object", "properties": properties, "required": list(properties)}
            rules += f" | %json {_enforceable(f'the schema of tool {quote(name)}', call)}"
    return rules


def _check_answer(answer: object) -> None:
    if answer is not None and not isinstance(answer, Grammar):
        raise GrammarError(f"answer must be a Grammar or None, not {quote(answer)}")


def _enforceable(what: str, schema: Any) -> str:
    """Returns a schema made ready by `enforceable`; whatever is wrong with it is a `GrammarError`."""
    try:
        return enforceable(schema)
    except GaCError as error:
        raise GrammarError(f"{what} cannot be enforced: {error}") from error
    except Exception as error:
        # A mapping of the caller's own may raise anything, and what is not checked may fail anywhere on the way.
        reason = f"{type(error).__name__}: {error}"
        raise GrammarError(f"{what} is not a valid JSON schema ({shorten(reason)}): {quote(schema)}") from error


def _escape(pattern: str) -> str:
    """The pattern between slashes: one of its own is escaped unless it is already."""
    out, escaped = [], False
    for char in pattern:
        if char == "\n":
            # Behind a backslash it stands for itself as well.
            char = "n" if escaped else "\\n"
        out.append("\\/" if char == "/" and not escaped else char)
        escaped = char == "\\" and not escaped
    return "".join(out)
