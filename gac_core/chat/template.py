"""What a member's chat template supports, determined by rendering probes, and rendering within that.

Templates are judged by their output, never by the name of their model family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from gac_core.chat.tools import CALL, END_CALL, END_RESULT, END_THINK, RESULT, SPACE, THINK, Tool, ToolCall
from gac_core.errors import ChatTemplateError, shorten
from gac_core.templates.plain import REMEDY
from gac_core.templates.rendering import apply_template, try_template
from gac_core.tokenization.escaping import Spellings, control_spellings
from gac_core.tokenization.tokenizer import MemberTokenizer

Turn = dict[str, Any]
_TAGS = (CALL, END_CALL, RESULT, END_RESULT, THINK, END_THINK)
_TOOL = Tool("xyzzy_tool", "xyzzy description", {"type": "object", "properties": {"xyzzy_key": {"type": "string"}}})
_CALL = ToolCall("xyzzy0001", _TOOL.name, '{"xyzzy_key": "xyzzy value"}')


@dataclass(frozen=True)
class Traits:
    """What one template supports.

    Attributes:
        system: Whether it renders a system turn at the beginning.
        late_system: Whether it renders system turns anywhere.
        parts: Whether it expects contents as lists of ``{"type": "text", "text": ...}``.
        tools: Whether it renders tools, calls as ``<tool_call>`` with JSON, and results.
        closes: Whether it writes anything after the last user message.
        tags: Spellings of the tokenizer's control tokens, and of the other added tokens that structure a conversation.
    """

    system: bool
    late_system: bool
    parts: bool
    tools: bool
    closes: bool
    tags: Spellings


_KNOWN: WeakKeyDictionary[MemberTokenizer, tuple[Any, Traits]] = WeakKeyDictionary()


def traits_of(tokenizer: MemberTokenizer) -> Traits:
    """Returns what the member's template supports; determined once per template.

    Raises:
        ChatTemplateError: The member has no template.
    """
    template = tokenizer.hf.chat_template
    if not template:
        raise ChatTemplateError(
            tokenizer.name, f"it has no chat template; set {REMEDY}, or give the prompt as a string"
        )
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != template:
        known = _KNOWN[tokenizer] = (template, _probe(tokenizer))
    return known[1]


def _probe(tokenizer: MemberTokenizer) -> Traits:
    def turn(role: str) -> Turn:
        return {"role": role, "content": f"xyzzy {role}"}

    user, system, other = turn("user"), turn("system"), turn("assistant")
    parts = "xyzzy user" not in _try(tokenizer, [user]) and "xyzzy user" in _try(tokenizer, [user], parts=True)

    def shows(turns: Sequence[Turn], word: str) -> bool:
        return word in _try(tokenizer, turns, parts=parts)

    return Traits(
        system=shows([system, user], "xyzzy system"),
        late_system=shows([user, other, system, user], "xyzzy system"),
        parts=parts,
        tools=_renders_tools(tokenizer, parts),
        closes=bool(_try(tokenizer, [user], parts=parts).rpartition("xyzzy user")[2].strip()),
        tags=_tags(tokenizer),
    )


def _renders_tools(tokenizer: MemberTokenizer, parts: bool) -> bool:
    """Whether the template renders a probe's tool and result, and its call as tags with name and arguments."""
    call = {"role": "assistant", "content": "", "tool_calls": [as_template_call(_CALL)]}
    result = {"role": "tool", "content": "xyzzy result", "tool_call_id": _CALL.id, "name": _CALL.name}
    turns: list[Turn] = [{"role": "user", "content": "xyzzy user"}, call, result]
    text = _try(tokenizer, turns, [_TOOL.as_openai()], parts)
    if not all(word in text for word in (_TOOL.description, "xyzzy result")):
        return False
    expected = {"name": _CALL.name, "arguments": _CALL.values}
    # The template's own instructions may contain the tag too.
    for piece in text.split(CALL)[1:]:
        body, closed, _ = piece.partition(END_CALL)
        try:
            if closed and json.loads(body.strip(SPACE)) == expected:
                return True
        except ValueError:
            continue
    return False


def as_template_call(call: ToolCall) -> Turn:
    """Returns a call as templates expect it: in OpenAI's form, but with the arguments as values."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.values}}


def _try(
    tokenizer: MemberTokenizer, turns: Sequence[Turn], tools: Sequence[Turn] | None = None, parts: bool = False
) -> str:
    return try_template(tokenizer.hf, tokenizer.name, _in_parts(turns, parts), tools, generation_prompt=True)


def _apply(
    tokenizer: MemberTokenizer,
    turns: Sequence[Turn],
    tools: Sequence[Turn] | None,
    parts: bool,
    settings: Mapping[str, Any],
) -> str:
    turns = _in_parts(turns, parts)
    return apply_template(tokenizer.hf, tokenizer.name, turns, tools, generation_prompt=True, settings=settings)


def _in_parts(turns: Sequence[Turn], parts: bool) -> Sequence[Turn]:
    if not parts:
        return turns
    return [{**turn, "content": _as_parts(turn["content"])} for turn in turns]


def _as_parts(content: Any) -> list[Any]:
    """A turn's content as parts; a string is one part."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _join(contents: Sequence[Any]) -> Any:
    """Contents of turns in one, divided by blank lines: a string, or parts if one of them has parts."""
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    joined: list[Any] = []
    for content in contents:
        joined += [{"type": "text", "text": "\n\n"}] if joined else []
        joined += _as_parts(content)
    return joined


# ---- rendering


def render_turns(
    tokenizer: MemberTokenizer,
    turns: Sequence[Turn],
    tools: Sequence[Tool] = (),
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Renders turns and the generation prompt.

    System turns that the template does not render are prepended to the next user turn. Where it rejects the turns as
    they are, adjacent turns of one role are joined; where it rejects that too, an empty user turn is inserted before
    the first turn of an assistant.

    Args:
        tokenizer: The member's tokenizer.
        turns: The turns as templates expect them, with contents as strings; as lists of parts where there are images.
        tools: The tools that the template renders. Default none.
        settings: Further variables of the template, such as ``enable_thinking``. Default none.

    Raises:
        ChatTemplateError: There is no template, or it rejects all of these.
    """
    traits = traits_of(tokenizer)
    placed = _place_system(turns, traits)
    schemas = [tool.as_openai() for tool in tools] or None
    error: Exception | None = None
    for change in (list, _joined, _user_first):
        try:
            return _apply(tokenizer, change(placed), schemas, traits.parts, settings or {})
        except ChatTemplateError:
            raise
        except Exception as rejection:
            # Templates may raise any exception.
            error = error or rejection
    raise ChatTemplateError(tokenizer.name, shorten(str(error))) from error


def _place_system(turns: Sequence[Turn], traits: Traits) -> list[Turn]:
    if traits.system and traits.late_system:
        return list(turns)
    placed: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            waiting.append(turn["content"])
            continue
        if waiting and not placed and traits.system:
            placed.append({"role": "system", "content": "\n\n".join(waiting)})
            waiting = []
        elif waiting and turn["role"] == "user":
            turn = {**turn, "content": _join([*waiting, turn["content"]])}
            waiting = []
        placed.append(turn)
    if waiting:
        role = "system" if traits.system and not placed else "user"
        placed.append({"role": role, "content": "\n\n".join(waiting)})
    return placed


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """Joins adjacent turns of one role with a blank line, except for turns of tools and turns with calls."""
    joined: list[Turn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if before is not None and before["role"] == turn["role"] != "tool" and "tool_calls" not in {*before, *turn}:
            content = _join([each for each in (before["content"], turn["content"]) if each])
            joined[-1] = {**before, **turn, "content": content}
        else:
            joined.append(turn)
    return joined


def _user_first(turns: Sequence[Turn]) -> list[Turn]:
    joined = _joined(turns)
    first = next((place for place, turn in enumerate(joined) if turn["role"] != "system"), len(joined))
    return [*joined[:first], {"role": "user", "content": ""}, *joined[first:]]


# ---- tags of a conversation


def _tags(tokenizer: MemberTokenizer) -> Spellings:
    source = tokenizer.hf.chat_template
    source = " ".join(source.values()) if isinstance(source, Mapping) else str(source)
    added = [str(token.content) for token in tokenizer.hf.added_tokens_decoder.values()]
    return Spellings(
        [*control_spellings(tokenizer).words, *(word for word in added if word in source or word in _TAGS)]
    )
