"""`Trace`: one answer, what each member proposed at every token, and what each member answers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gac_core.chat.conversation import Message, as_conversation
from gac_core.ensemble import Ensemble
from gac_core.integration.metadata import as_metadata
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.trace.page import render
from gac_core.voices import AnyPrompt, DocumentPrompt, Documents, VoicesPrompt, as_prompt

_VERSION = 1


@dataclass(frozen=True)
class Trace:
    """One answer with the statistics of its tokens.

    Attributes:
        prompt: The prompt: a text, or the messages of a conversation.
        output: The ensemble's answer, with `RequestOutput.token_stats`.
        alone: By name what each member answers alone to the same prompt, likewise.
        documents: Texts of the documents that it was answered from, by id; empty without documents.
    """

    prompt: str | tuple[Message, ...]
    output: RequestOutput
    alone: Mapping[str, RequestOutput] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)

    def to_html(self, title: str = "") -> str:
        """Returns a self-contained HTML page, which needs neither scripts nor a network.

        Args:
            title: Title of the page. Default: the beginning of the prompt.
        """
        return render(self.prompt, self.output, self.alone, title, self.documents)

    def to_json(self) -> str:
        """Returns the trace as JSON: ``version``, ``prompt``, ``answer``, and ``alone`` by member.

        With documents also ``documents``: their texts by id. An answer has ``text``, ``reasoning`` and the values of
        `as_metadata`.
        """
        prompt = self.prompt if isinstance(self.prompt, str) else [_plain(message) for message in self.prompt]
        values = {
            "version": _VERSION,
            "prompt": prompt,
            "answer": _answer(self.output),
            "alone": {name: _answer(output) for name, output in self.alone.items()},
        }
        if self.documents:
            values["documents"] = dict(self.documents)
        return json.dumps(values, ensure_ascii=False, indent=1)


def _plain(message: Message) -> dict[str, Any]:
    return {key: value for key, value in asdict(message).items() if value}


def _answer(output: RequestOutput) -> dict[str, Any]:
    return {"text": output.text, "reasoning": output.reasoning, **as_metadata(output)}


def trace(
    ensemble: Ensemble,
    prompt: AnyPrompt,
    params: SamplingParams | None = None,
    *,
    documents: Documents | None = None,
    alone: bool = True,
    **overrides: Any,
) -> Trace:
    """Answers a prompt and returns what each member proposed at every token.

    Args:
        ensemble: The ensemble.
        prompt: As in `Ensemble.generate`.
        params: As there; ``token_stats`` is set in any case.
        documents: As there.
        alone: Whether each member that takes part also answers alone. Default True.
        **overrides: Single values in place of those of ``params``.

    Raises:
        RequestError: The prompt or an argument is wrong.
        MemberError: A member failed.
    """
    asked = (params or SamplingParams()).with_overrides({**overrides, "token_stats": True})
    whole = as_prompt(prompt, documents=documents)
    return trace_of(ensemble, whole, ensemble.generate(whole, asked), asked, alone=alone)


def trace_of(
    ensemble: Ensemble, prompt: AnyPrompt, output: RequestOutput, params: SamplingParams, *, alone: bool = True
) -> Trace:
    """Returns the trace of an answer that has statistics of its tokens; arguments and errors as in `answers_alone`.

    Args:
        ensemble: The ensemble.
        prompt: The prompt of the answer.
        output: The answer.
        params: Its parameters.
        alone: Whether each member that took part also answers alone. Default True.
    """
    texts: dict[str, str] = {}
    if isinstance(prompt, DocumentPrompt):
        texts = {str(document.id): document.text for document, _ in prompt.document_weights().values()}
    others = answers_alone(ensemble, prompt, output, params) if alone else {}
    return Trace(_shown(prompt), output, others, texts)


def _shown(prompt: AnyPrompt) -> str | tuple[Message, ...]:
    """Returns the prompt that a trace shows: with the place of the document, and of several voices the first one's."""
    if isinstance(prompt, VoicesPrompt):
        return _shown(prompt.voices[0].prompt)
    if isinstance(prompt, DocumentPrompt):
        return _shown(prompt.prompt)
    conversation = as_conversation(prompt)
    return conversation.turns if conversation is not None else str(prompt)


def answers_alone(
    ensemble: Ensemble, prompt: AnyPrompt, output: RequestOutput, params: SamplingParams | None = None
) -> dict[str, RequestOutput]:
    """Returns by name what each member of an answer answers alone to the same prompt, with statistics of its tokens.

    The members answer one after the other, so that their costs can be compared with those of the ensemble. A sampled
    answer is repeated with its seed. If a single member took part, it has no other answer alone: the result is empty.
    A member alone reads all documents of the prompt, or the voices that name it; without any that votes it is left out.

    Args:
        ensemble: The ensemble.
        prompt: The prompt of the answer.
        output: The answer.
        params: Its parameters. Default `SamplingParams()`.

    Raises:
        RequestError: The prompt or an argument is wrong.
        MemberError: A member failed.
    """
    names = list(output.stats.settings.weights)
    params = params or SamplingParams()
    if len(names) == 1:
        return {}
    own = {name: _own_prompt(prompt, name) for name in names}
    # At a threshold of 0 the gate would read one document alone.
    whole = bool(output.document_shares)
    return {
        name: ensemble.generate(
            asked,
            params,
            gate=None if whole else name,
            threshold=None if whole else 0.0,
            weights={other: float(other == name) for other in names},
            seed=output.seed,
            token_stats=True,
        )
        for name, asked in own.items()
        if asked is not None
    }


def _own_prompt(prompt: AnyPrompt, member: str) -> AnyPrompt | None:
    """Returns what a member reads of a prompt alone; None if it has no voice that votes."""
    if not isinstance(prompt, VoicesPrompt):
        return prompt
    voices = [voice for voice in prompt.voices if voice.member == member]
    return VoicesPrompt(voices) if any(not voice.prior for voice in voices) else None
