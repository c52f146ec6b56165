"""Forms of tool calls without ``<tool_call>`` tags: one definition for the grammar and the parser.

An answer in one of these forms consists of calls only. A call is a JSON object, ``{"name": ..., "arguments": {...}}``.
Accepted variants: ``parameters`` instead of ``arguments`` (Llama 3), ``function`` instead of ``name``, OpenAI's
``{"type": "function", "function": {...}}``, several objects on lines of their own or separated by ``;`` or ``,``, and a
list of objects. All of these may be enclosed in a fenced block or in ``<tools>`` or ``<function_call>`` tags, or follow
Mistral's ``[TOOL_CALLS]``. In the forms ``[TOOL_CALLS]name[ARGS]{...}`` and ``<function=name>{...}</function>`` the
arguments follow the name directly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import regex

# Bounded, because the parser holds text back until it is certain whether a call begins.
_GAP = r"[ \t\r\n]{0,40}"
_COLON, _COMMA = f"{_GAP}:{_GAP}", f"{_GAP},{_GAP}"
_TYPE = f'(?:"type"{_COLON}"function"{_COMMA})?'
_ARGUMENTS = f'{_COMMA}"(?:arguments|parameters)"{_COLON}'
# An object up to the tool's name, and the number of braces that close it after its arguments.
_OBJECTS = (
    (f'\\{{{_GAP}{_TYPE}"(?:name|function)"{_COLON}"NAME"', 1),
    (f'\\{{{_GAP}{_TYPE}"function"{_COLON}\\{{{_GAP}"name"{_COLON}"NAME"', 2),
)
_FRAMES = (
    (r"(?:\[TOOL_CALLS\])?", ""),
    ("```(?:json|tool_call|tool_code)?", "```"),
    ("<tools>", "</tools>"),
    ("<function_call>", "</function_call>"),
)

Head = tuple[str, str, int]


@dataclass(frozen=True)
class Form:
    """One form of an answer that consists of calls. All strings but ``closing`` are regular expressions.

    Attributes:
        opening: Precedes the first call.
        heads: A call up to its arguments, split after the tool's name (``NAME``), and the number of braces that follow
            the arguments.
        separator: Stands between two calls; None where there is exactly one.
        closing: Literals that follow the last call, each after optional white space.
    """

    opening: str
    heads: tuple[Head, ...]
    separator: str | None
    closing: tuple[str, ...]


_OBJECT_HEADS = tuple((head, _ARGUMENTS, braces) for head, braces in _OBJECTS)
FORMS = (
    *(
        Form(
            f"{opening}{_GAP}" + (f"\\[{_GAP}" if is_list else ""),
            _OBJECT_HEADS,
            _COMMA if is_list else f"{_GAP}[;,]?{_GAP}",
            tuple(filter(None, ("]" if is_list else "", closing))),
        )
        for (opening, closing), is_list in product(_FRAMES, (False, True))
    ),
    Form("", ((f"\\[TOOL_CALLS\\]{_GAP}NAME{_GAP}\\[ARGS\\]", _GAP, 0),), None, ()),
    Form("", (("<function=NAME>", _GAP, 0),), None, ("</function>",)),
)

# The only form allowed beside an answer with a JSON schema, whose text may look like the other forms.
BARE_FORM = Form("", ((f'\\{{{_GAP}"name"{_COLON}"NAME"', f'{_COMMA}"arguments"{_COLON}', 1),), None, ())


# ---- grammar


def call_rules(names: Sequence[str], parallel: bool) -> list[str]:
    """Returns Lark rules that derive an answer in any of the forms from ``forms``.

    They refer to the rules ``arguments0``, ``arguments1``, ... of the tools' arguments. A form is binding as soon as
    its text includes a tool's name; until then every other text is still possible.

    Args:
        names: The tools' names.
        parallel: Whether more than one call may follow.
    """
    rules = [f"forms: ({' | '.join(f'form{index}' for index in range(len(FORMS)))}) TRAILING"]
    rules.append(r"TRAILING: /[ \t\r\n]{0,4}/")
    rules.append("item: " + " | ".join(_calls(rules, "item", "", _OBJECT_HEADS, names)))
    for index, form in enumerate(FORMS):
        # Lazy: as soon as the tool's name is complete, the text must be a call.
        calls = _calls(rules, f"form{index}", r"[ \t\r\n]*" + form.opening, form.heads, names, "[lazy]")
        more = f" (/{_lark(form.separator)}/ item)*" if parallel and form.separator is not None else ""
        closing = "".join(f" /{_lark(_GAP + re.escape(literal))}/" for literal in form.closing)
        rules.append(f"form{index}: ({' | '.join(calls)}){more}{closing}")
    return rules


def _calls(
    rules: list[str], prefix: str, opening: str, heads: Iterable[Head], names: Sequence[str], attributes: str = ""
) -> list[str]:
    """Adds one rule per kind of call and tool, and returns the names of the rules."""
    calls = []
    for (kind, (head, between, braces)), (tool, name) in product(enumerate(heads), enumerate(names)):
        call = f"{prefix}_{kind}_{tool}"
        rules.append(f"{call}_head{attributes}: /{_lark(opening + head.replace('NAME', re.escape(name)))}/")
        closing = f" /{_lark(_GAP)}}}/" * braces
        rules.append(f"{call}: {call}_head /{_lark(between)}/ arguments{tool}{closing}")
        calls.append(call)
    return calls


def _lark(pattern: str) -> str:
    return pattern.replace("/", "\\/")


# ---- parser


@dataclass(frozen=True)
class Start:
    """The start of a call in a text.

    Attributes:
        form: The form of the call.
        braces: Number of braces that close it after its arguments.
        name: The tool's name.
        named: Index in the text at which the name begins.
        arguments: Index in the text at which the arguments begin.
    """

    form: Form
    braces: int
    name: str
    named: int
    arguments: int


def find_start(text: str, names: frozenset[str], forms: tuple[Form, ...], form: Form | None = None) -> Start | bool:
    """Returns the call at the start of a text; without one, whether further text could complete one.

    Args:
        text: The text; for the first call of an answer, without leading white space.
        names: The tools' names.
        forms: The forms to look for.
        form: The form of the previous call, whose separator is expected first. Default None: there is no previous call.
    """
    is_open = False
    for known, braces, pattern, _ in _patterns(names, forms, form):
        found = pattern.match(text, partial=True)
        if found is not None and not found.partial:
            return Start(known, braces, found["name"], found.start("name"), found.end() - 1)
        is_open = is_open or found is not None
    return is_open


def find_name(text: str, names: frozenset[str], forms: tuple[Form, ...], form: Form | None = None) -> str | None:
    """Returns the tool's name of the call at the start of a text, even if its arguments are missing; else None."""
    found = (pattern.match(text) for _, _, _, pattern in _patterns(names, forms, form))
    return next((str(match["name"]) for match in found if match is not None), None)


def find_end(text: str, form: Form) -> int | bool:
    """Returns the index after a form's closing at the start of a text; else whether further text could complete it."""
    found = _closing(form).match(text, partial=True) if form.closing else None
    return found is not None if found is None or found.partial else int(found.end())


@lru_cache(maxsize=64)
def _patterns(names: frozenset[str], forms: tuple[Form, ...], form: Form | None) -> list[tuple[Form, int, Any, Any]]:
    """Per kind of call: form, closing braces, and the patterns up to the arguments' brace and up to the tool's name."""
    named = f"(?P<name>{'|'.join(map(re.escape, sorted(names)))})"
    kinds = (
        [(known, known.opening, head) for known in forms for head in known.heads]
        if form is None
        else [(form, form.separator, head) for head in _OBJECT_HEADS if form.separator is not None]
    )
    patterns = []
    for known, before, (head, between, braces) in kinds:
        short = f"{before}{head.replace('NAME', named)}"
        patterns.append((known, braces, regex.compile(f"{short}{between}\\{{"), regex.compile(short)))
    return patterns


@lru_cache(maxsize=64)
def _closing(form: Form) -> Any:
    return regex.compile("".join(_GAP + re.escape(literal) for literal in form.closing))
