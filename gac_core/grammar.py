"""What a text must look like: a JSON schema, a regular expression, a Lark grammar, one of some choices, or tool calls.

Plain values that say it in the language of llguidance, which compiles them (`gac_core.constraint`). Knows nothing of
vocabularies or requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gac_core.errors import GrammarError

# How JSON is spaced, and that it is never spaced otherwise: as models were trained to write it, and so that everything
# between two values is decided by the schema.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What a text must look like; made by the class methods, given as `SamplingParams.grammar`.

    Attributes:
        kind: How it was made: ``"json_schema"``, ``"regex"``, ``"lark"``, ``"choices"`` or ``"tools"``.
        lark: The grammar in llguidance's dialect of Lark.
        answer: The grammar that ``lark`` calls ``@answer``, if it does.
    """

    kind: str
    lark: str = field(repr=False)
    answer: Grammar | None = None

    @property
    def source(self) -> str:
        """What llguidance compiles."""
        parts = [{"name": "main", "lark_grammar": self.lark}]
        if self.answer is not None:
            parts.append({"name": "answer", "lark_grammar": self.answer.lark})
        return json.dumps({"grammars": parts})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """A JSON text that a schema allows, spaced as ``{"a": 1, "b": [2, 3]}``.

        An object whose ``properties`` are listed gets no others unless the schema speaks of ``additionalProperties``:
        what the schema merely does not forbid, nobody who reads the answer waits for.

        Args:
            schema: A JSON schema (draft 2020-12 and older) as a mapping or as JSON.

        Raises:
            GrammarError: The schema is no JSON object. What a schema asks for that cannot be enforced is refused when
                a request comes with it, before any work.
        """
        return cls("json_schema", f"start: %json {_json(schema)}")

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole (Rust's syntax, without look-around).

        Raises:
            GrammarError: The pattern is no string, or empty.
        """
        if not isinstance(pattern, str) or not pattern:
            raise GrammarError(f"a regular expression is a string that is not empty, not {pattern!r}")
        return cls("regex", f"start: TEXT\nTEXT: /{_escape(pattern)}/")

    @classmethod
    def lark_grammar(cls, text: str) -> Grammar:
        """A text that a Lark grammar derives from its rule ``start`` (llguidance's dialect).

        Raises:
            GrammarError: The grammar is no string, or empty.
        """
        if not isinstance(text, str) or not text.strip():
            raise GrammarError(f"a Lark grammar is a string that is not empty, not {text!r}")
        return cls("lark", text)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts, letter for letter.

        Raises:
            GrammarError: There is none, or one is no string or empty.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise GrammarError(f"choices are a list of strings that are not empty, not {texts!r}")
        return cls("choices", "start: " + " | ".join(json.dumps(text) for text in dict.fromkeys(texts)))

    @classmethod
    def tool_calls(
        cls,
        tools: Mapping[str, Mapping[str, Any]],
        required: bool = False,
        parallel: bool = True,
        answer: Grammar | None = None,
    ) -> Grammar:
        """Any text and calls of tools, each as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

        Args:
            tools: Per tool's name the JSON schema of its arguments, at least one.
            required: Calls only, one or more. Default False: text, which may go over into calls.
            parallel: Whether more than one call may follow. Default True.
            answer: What a text without calls must look like. Default None: anything; it may then go over into calls.

        Raises:
            GrammarError: There is no tool, a schema is no JSON object, or calls are required beside an answer.
        """
        if not tools:
            raise GrammarError("tool calls need at least one tool")
        if answer is not None and (required or answer.answer is not None):
            raise GrammarError("where tool calls are required there is no other answer; give one of both")
        bodies = [
            f'"{{\\"name\\": " {json.dumps(json.dumps(name))} ", \\"arguments\\": " %json {_json(schema)} "}}"'
            for name, schema in tools.items()
        ]
        rules = [f"call{index}: {body}" for index, body in enumerate(bodies)]
        body = " | ".join(f"call{index}" for index in range(len(bodies)))
        rules.append(f'body: GAP ({body}) GAP "</tool_call>"')
        # A template may put a line break on either side of the call; more white space has no use.
        rules.append("GAP: /\\n?/")
        calls = '"<tool_call>" body' + (' (GAP "<tool_call>" body)*' if parallel else "")
        if required:
            rules.append(f"start: {calls}")
        elif answer is not None:
            rules.append(f"start: {calls} | @answer")
        else:
            rules.append("start: called* text" if parallel else "start: called | text")
            rules += ["called: opening body", 'opening[lazy]: TEXT "<tool_call>"', "text: TEXT", "TEXT: /(.|\\n)*/"]
        return cls("tools", "\n".join(rules), answer)


def _json(schema: Mapping[str, Any] | str) -> str:
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if isinstance(value, bool):
            value = {} if value else {"not": {}}
        if not isinstance(value, Mapping):
            raise TypeError(f"it is a {type(value).__name__}")
        text = json.dumps(value)
        # Where schemas are joined, one that is closed would forbid what the others list.
        value = json.loads(text) if '"allOf"' in text else _closed(json.loads(text))
        asked = value.get("x-guidance")
        return json.dumps({**value, "x-guidance": {**_SPACING, **(asked if isinstance(asked, Mapping) else {})}})
    except (TypeError, ValueError) as error:
        raise GrammarError(f"a JSON schema is an object that JSON can hold: {error}") from error


def _closed(schema: Any) -> Any:
    """The schema with every object closed that lists its properties and says nothing of others."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        if isinstance(out.get(key), dict):
            out[key] = {name: _closed(part) for name, part in out[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(out.get(key), list):
            out[key] = [_closed(part) for part in out[key]]
    for key in ("items", "additionalProperties"):
        out.update({key: _closed(out[key])} if key in out else {})
    speaks = (
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "anyOf",
        "oneOf",
        "$ref",
        "enum",
        "const",
    )
    if isinstance(out.get("properties"), dict) and not any(key in out for key in speaks):
        out["additionalProperties"] = False
    return out


def _escape(pattern: str) -> str:
    """The pattern between slashes: one of its own is escaped unless it is already."""
    out, escaped = [], False
    for char in pattern:
        out.append("\\/" if char == "/" and not escaped else "\\n" if char == "\n" else char)
        escaped = char == "\\" and not escaped
    return "".join(out)
