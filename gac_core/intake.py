"""From a prompt and its parameters to a request, and to what takes its answer apart.

Refuses what cannot be done before any work. Knows members for their tokenizers and contexts only.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from gac_core.answer import AnswerParser
from gac_core.chat import Conversation, Prompt, as_conversation, encode_prompt, opens_thinking, render, shared_format
from gac_core.config import EnsembleConfig
from gac_core.constraint import Compiler
from gac_core.errors import PromptTooLongError, RequestError
from gac_core.grammar import Grammar
from gac_core.member import Member
from gac_core.reply import Reply
from gac_core.request import MemberText, Request
from gac_core.sampling import Sampler, SamplingParams
from gac_core.vocabulary import UnionVocabulary


class Intake:
    """Makes requests; may be used from many threads.

    Args:
        members: The members.
        union: Their union.
        config: Gate and threshold.
    """

    def __init__(self, members: Sequence[Member], union: UnionVocabulary, config: EnsembleConfig) -> None:
        self._members = list(members)
        self._names = config.names
        self._gate = config.gate or self._names[0]
        self._threshold = config.threshold
        self._compiler = Compiler(union)
        # Tokenizers are not made for several threads at once.
        self._encoding = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Returns a text in the gate's ids, without special tokens."""
        with self._encoding:
            return self._members[self._names.index(self._gate)].tokenizer.encode_rendered(text)

    def request(
        self, prompt: Prompt, params: SamplingParams | None, overrides: Mapping[str, Any]
    ) -> tuple[Request, Reply]:
        """Returns a request and what reads its answer.

        Raises:
            RequestError: The prompt or an argument is wrong.
        """
        params = (params or SamplingParams()).with_overrides(overrides)
        gate = params.gate or self._gate
        if gate not in self._names:
            raise RequestError(f"the gate {gate!r} is not a member; members are: {', '.join(self._names)}")
        index = self._names.index(gate)
        talk = as_conversation(prompt)
        with self._encoding:
            native = talk is not None and self._native(talk)
            texts = [self._text(member, prompt if talk is None else talk, native) for member in self._members]
            reply = Reply(None if talk is None else self._parser(talk, index, native))
        grammar = params.grammar if talk is None else _grammar(talk, params.grammar)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        request = Request(
            request_id=uuid.uuid4().hex,
            params=params,
            texts=texts,
            gate=index,
            threshold=self._threshold if params.threshold == "default" else params.threshold,
            sampler=Sampler(params, seed),
            seed=seed,
            names=self._names,
            written=bytearray(self._members[index].tokenizer.decode(texts[index].ids)),
            constraint=None if grammar is None else self._compiler.start(grammar),
        )
        return request, reply

    def _native(self, talk: Conversation) -> bool:
        tokenizers = [member.tokenizer for member in self._members]
        return talk.tool_format != "common" and (talk.tool_format == "native" or shared_format(tokenizers) == "native")

    def _text(self, member: Member, prompt: Prompt, native: bool) -> MemberText:
        ids = encode_prompt(member.tokenizer, prompt, native)
        if member.context is not None and len(ids) > member.context:
            raise PromptTooLongError(member.name, len(ids), member.context)
        return MemberText(ids)

    def _parser(self, talk: Conversation, gate: int, native: bool) -> AnswerParser:
        tokenizer = self._members[gate].tokenizer
        inside = opens_thinking(tokenizer, render(tokenizer, talk, native))
        return AnswerParser(tools=[tool.name for tool in talk.told_tools], thinking=True, inside=inside)


def _grammar(talk: Conversation, answer: Grammar | None) -> Grammar | None:
    """What an answer must look like: calls of the tools it may call, or the text that was asked for."""
    if not talk.told_tools:
        return answer
    named = talk.tool_choice not in ("auto", "required")
    tools = {tool.name: tool.parameters for tool in talk.told_tools if not named or tool.name == talk.tool_choice}
    required = talk.tool_choice != "auto"
    return Grammar.tool_calls(tools, required=required, parallel=talk.parallel_tool_calls and not named, answer=answer)
