"""The form of the answer to a conversation: how it is parsed, and the grammar that it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import BARE_FORM, FORMS, Form
from gac_core.chat.conversation import Conversation
from gac_core.grammar.grammar import Grammar


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer.

    Attributes:
        grammar: The grammar that it follows; None: none.
        parser: Makes a parser of it; None where the prompt was a string, whose continuation is text only.
    """

    grammar: Grammar | None
    parser: Callable[[], AnswerParser] | None

    @classmethod
    def of(cls, conversation: Conversation, answer: Grammar | None, inside: bool) -> AnswerForm:
        """Returns the form of the answer to a conversation.

        Args:
            conversation: The conversation.
            answer: The grammar that the request asks for; None: none.
            inside: Whether the prompt has opened the block of reasoning.
        """
        return cls(_answer_grammar(conversation, answer, inside), lambda: _answer_parser(conversation, answer, inside))


def _answer_parser(conversation: Conversation, answer: Grammar | None, inside: bool) -> AnswerParser:
    """Returns the parser of the answer; it agrees with `_answer_grammar` on what a tool call is."""
    names = [tool.name for tool in conversation.offered_tools]
    forms: tuple[Form, ...] = ()
    if conversation.tool_choice == "auto" and answer is None:
        forms = FORMS
    elif conversation.tool_choice == "auto" and answer is not None and answer.kind == "json_schema":
        forms = (BARE_FORM,)
    # Without tools an answer in a grammar begins at once, also where the template has opened a block of reasoning.
    inside = inside and (answer is None or bool(names))
    return AnswerParser(names, inside=inside, forms=forms, distinct=conversation.tool_choice != "auto")


def _answer_grammar(conversation: Conversation, answer: Grammar | None, inside: bool) -> Grammar | None:
    """Returns the grammar of the answer: tool calls, or the requested kind of text."""
    if not conversation.offered_tools:
        return answer
    named = conversation.tool_choice not in ("auto", "required")
    tools = {
        tool.name: tool.parameters
        for tool in conversation.offered_tools
        if not named or tool.name == conversation.tool_choice
    }
    required = conversation.tool_choice != "auto"
    parallel = conversation.parallel_tool_calls and not named
    return Grammar.tool_calls(tools, required=required, parallel=parallel, answer=answer, inside=inside)
