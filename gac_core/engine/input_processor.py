"""From a prompt and its parameters to a request, and to what takes its answer apart.

Refuses what cannot be done before any work. Knows members for their tokenizers and contexts only.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import BARE_FORM, FORMS, Form
from gac_core.chat.chat import (
    Conversation,
    Prompt,
    RenderedPrompt,
    as_conversation,
    check_size,
    opens_thinking,
    prepare,
    render,
    tells_natively,
)
from gac_core.config import EnsembleConfig
from gac_core.decoding.request import MemberText, Request
from gac_core.decoding.sampler import Sampler
from gac_core.effective import EnsembleDefaults
from gac_core.engine.output_processor import OutputProcessor
from gac_core.errors import PromptTooLongError, RequestError, quote
from gac_core.grammar.compiler import Compiler
from gac_core.grammar.grammar import Grammar
from gac_core.model.member import Member
from gac_core.sampling import SamplingParams
from gac_core.templates.plain import REMEDY, turn_ends
from gac_core.tokenization.lengths import check_bytes
from gac_core.tokenization.vocabulary import UnionVocabulary

logger = logging.getLogger(__name__)


class InputProcessor:
    """Makes requests; may be used from many threads.

    Args:
        members: The members.
        union: Their union.
        config: Gate and threshold.
    """

    def __init__(self, members: Sequence[Member], union: UnionVocabulary, config: EnsembleConfig) -> None:
        self._members = list(members)
        self._names = config.names
        self._everyone = tuple(range(len(members)))
        self.defaults = EnsembleDefaults(config, [member.size for member in members])
        self._compiler = Compiler(union)
        for member in members:
            if not member.tokenizer.hf.chat_template:
                logger.warning("member %r has no chat template; for conversations, set %s", member.name, REMEDY)

    def encode(self, text: str) -> list[int]:
        """Returns a text in the gate's ids, without special tokens."""
        check_bytes([text], "the text")
        return self._members[self.defaults.index(None)].tokenizer.encode_rendered(text)

    def count(self, prompt: Prompt, params: SamplingParams) -> int:
        """Returns the tokens of a prompt for the participant that reads most in it, also where that is too much."""
        _, _, members = self._participants(params)
        _, prepared = self._prepared(prompt, members, params.parse_special, bounded=False)
        return max(len(each.encode()) for each in prepared.values())

    def context(self, params: SamplingParams) -> int | None:
        """Returns the smallest context of a request's participants, in tokens; None where none has a limit."""
        _, _, members = self._participants(params)
        contexts = [self._members[member].context for member in members]
        return min((context for context in contexts if context is not None), default=None)

    def request(
        self, prompt: Prompt, params: SamplingParams | None, overrides: Mapping[str, Any], label: str = ""
    ) -> tuple[Request, OutputProcessor]:
        """Returns a request, with the id that callers see, and what reads its answer.

        Raises:
            RequestError: The prompt or an argument is wrong.
        """
        params = resolved(params, overrides)
        index, threshold, members = self._participants(params)
        talk, prepared = self._prepared(prompt, members, params.parse_special, bounded=True)
        texts = {member: self._text(self._members[member], each.encode()) for member, each in prepared.items()}
        inside = talk is not None and self._opens_thinking(talk, index)
        reply = OutputProcessor(None if talk is None else _parser(talk, params.grammar, inside))
        grammar = params.grammar if talk is None else _grammar(talk, params.grammar, inside)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        request = Request(
            request_id=uuid.uuid4().hex,
            label=label,
            params=params,
            texts=texts,
            gate=index,
            threshold=threshold,
            sampler=Sampler(params, seed),
            seed=seed,
            names=self._names,
            settings=self.defaults.settings(params, members, index, threshold, seed),
            written=bytearray(self._members[index].tokenizer.decode(texts[index].ids)),
            constraint=None if grammar is None else self._compiler.start(grammar, self._budget(params, texts)),
            turn_ends=() if talk is None or params.grammar is not None else self._turn_ends(members),
        )
        return request, reply

    def without_chat_template(self, params: SamplingParams) -> list[str]:
        """Returns the names of a request's participants that have no chat template.

        Raises:
            RequestError: The gate is not a member.
        """
        _, _, members = self._participants(params)
        return [self._names[member] for member in members if not self._members[member].tokenizer.hf.chat_template]

    def _participants(self, params: SamplingParams) -> tuple[int, float | None, tuple[int, ...]]:
        """A request's gate and threshold, and the members that take part in it."""
        gate, threshold = self.defaults.resolve(params)
        # At a threshold of 0 the gate decides every step, so that no other member takes part.
        return gate, threshold, (gate,) if threshold == 0 else self._everyone

    def _turn_ends(self, members: Sequence[int]) -> tuple[str, ...]:
        """What ends an answer in the text of members whose models do not end their turns."""
        ends = [turn_ends(self._members[member].tokenizer.hf.chat_template) for member in members]
        return tuple(dict.fromkeys(end for own in ends for end in own))

    def _prepared(
        self, prompt: Prompt, members: Sequence[int], parse_special: bool, bounded: bool
    ) -> tuple[Conversation | None, dict[int, RenderedPrompt]]:
        """The prompt as a conversation, if it is one, and as the text of each of some members.

        It is refused where it is too large to be encoded and, if ``bounded``, where it cannot fit into a context.
        """
        talk = as_conversation(prompt)
        told = prompt if talk is None else talk
        if talk is not None or not bounded:
            check_size(told)
        prepared = {}
        for member in members:
            tokenizer = self._members[member].tokenizer
            native = talk is not None and tells_natively(tokenizer, talk)
            prepared[member] = prepare(tokenizer, told, native, parse_special)
        if bounded:
            # All of them before one is encoded, which may take long.
            for member, each in prepared.items():
                each.check_length(self._members[member].context)
            check_size(told)
        return talk, prepared

    def _budget(self, params: SamplingParams, texts: Mapping[int, MemberText]) -> int:
        """Tokens that may be written at most: ``max_tokens``, or fewer where a member's context ends before."""
        contexts = {member: self._members[member].context for member in texts}
        rooms = [context - len(texts[member].ids) for member, context in contexts.items() if context is not None]
        return min([params.max_tokens, *rooms])

    @staticmethod
    def _text(member: Member, ids: list[int]) -> MemberText:
        if member.context is not None and len(ids) > member.context:
            raise PromptTooLongError(member.name, len(ids), member.context)
        return MemberText(ids)

    def _opens_thinking(self, talk: Conversation, gate: int) -> bool:
        """Whether the gate's template has opened the block of reasoning."""
        tokenizer = self._members[gate].tokenizer
        return opens_thinking(tokenizer, render(tokenizer, talk, tells_natively(tokenizer, talk)))


def resolved(params: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
    """Returns a request's parameters.

    Raises:
        RequestError: An argument is wrong.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise RequestError(f"params must be a SamplingParams or None, not {quote(params)}")
    return (params or SamplingParams()).with_overrides(overrides)


def as_label(request_id: object) -> str:
    """Returns a caller's id of a request, or a new one for None.

    Raises:
        RequestError: It is no printable string of 1 to 200 characters.
    """
    if request_id is None:
        return uuid.uuid4().hex
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 200 or not request_id.isprintable():
        raise RequestError(f"request_id must be a string of 1 to 200 printable characters, not {quote(request_id)}")
    return str.__str__(request_id)


def _parser(talk: Conversation, answer: Grammar | None, inside: bool) -> AnswerParser:
    """What takes an answer apart; agrees with `_grammar` on what is a call."""
    names = [tool.name for tool in talk.told_tools]
    forms: tuple[Form, ...] = ()
    if talk.tool_choice == "auto" and answer is None:
        forms = FORMS
    elif talk.tool_choice == "auto" and answer is not None and answer.kind == "json_schema":
        forms = (BARE_FORM,)
    # Without tools an answer in a grammar begins at once, also where the template has opened a block of reasoning.
    inside = inside and (answer is None or bool(names))
    return AnswerParser(names, inside=inside, forms=forms, distinct=talk.tool_choice != "auto")


def _grammar(talk: Conversation, answer: Grammar | None, inside: bool) -> Grammar | None:
    """What an answer must look like: calls of the tools it may call, or the text that was asked for."""
    if not talk.told_tools:
        return answer
    named = talk.tool_choice not in ("auto", "required")
    tools = {tool.name: tool.parameters for tool in talk.told_tools if not named or tool.name == talk.tool_choice}
    required = talk.tool_choice != "auto"
    parallel = talk.parallel_tool_calls and not named
    return Grammar.tool_calls(tools, required=required, parallel=parallel, answer=answer, inside=inside)
