"""From a prompt and its parameters to a request and the processor of its output.

What cannot be answered is refused here, before any forward.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Any

from gac_core.chat.conversation import Conversation, Prompt
from gac_core.chat.rendered_prompt import opens_thinking, render_conversation, uses_native_tools
from gac_core.checks import check_int
from gac_core.combination import combiner_named, gate_named
from gac_core.combination.documents import document_rule_named
from gac_core.config import EnsembleConfig
from gac_core.decoding.continuation import KIND
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.request import Request
from gac_core.decoding.sampler import FixedTokens, Sampler, choice_seed
from gac_core.decoding.sequence import Sequence, read_documents
from gac_core.doubt import AbsenceCalibration
from gac_core.effective import EnsembleDefaults, RequestSettings, gate_index
from gac_core.engine.answer_form import AnswerForm
from gac_core.engine.continuation_text import Continuation
from gac_core.engine.continuations import given_tokens, opening_ids
from gac_core.engine.measuring import likelihood_request, measurement, tokenized
from gac_core.engine.output_processor import OutputProcessor
from gac_core.engine.prompts import encode_prompt, render_for
from gac_core.engine.reading import check_keeps_documents, kept_voices, reading_request
from gac_core.engine.sequences import budget, check_prior, choose_gate, other_prompts, prompt_bytes, sequences
from gac_core.engine.token_bias import logit_adjustment
from gac_core.engine.voice_prompts import EncodedVoice, EncodedVoices, encode_voices, voices_of_gate
from gac_core.errors import RequestError, quote
from gac_core.grammar.compiler import Compiler
from gac_core.grammar.grammar import Grammar
from gac_core.sampling import SamplingParams, resolved
from gac_core.templates.plain import REMEDY, turn_ends
from gac_core.tokenization.lengths import check_bytes
from gac_core.tokenization.vision import EncodedPrompt
from gac_core.tokenization.vocabulary import UnionVocabulary
from gac_core.voices import AnyPrompt, DocumentPrompt, VoicesPrompt

logger = logging.getLogger(__name__)


class InputProcessor:
    """Makes requests. Thread-safe.

    Args:
        members: The ensemble's members.
        union: Their union vocabulary.
        compiler: Compiles grammars for the union vocabulary.
        config: The ensemble's configuration.
        ensemble_id: Id of the ensemble within the engine.
    """

    def __init__(
        self,
        members: Rows[EnsembleMember],
        union: UnionVocabulary,
        compiler: Compiler,
        config: EnsembleConfig,
        ensemble_id: str,
    ) -> None:
        self._members = list(members)
        self._union = union
        self._config = config
        self._ensemble_id = ensemble_id
        self.defaults = EnsembleDefaults(config, [member.size for member in members])
        self._compiler = compiler
        self._absence = None if config.absence is None else AbsenceCalibration.of(config.absence)
        for member in members:
            if not member.tokenizer.hf.chat_template:
                logger.warning("member %r has no chat template; for conversations, set %s", member.name, REMEDY)

    @property
    def vision_members(self) -> tuple[str, ...]:
        """Names of the members that read images."""
        return tuple(member.name for member in self._members if member.reads_images)

    def _gate(self, name: str | None) -> EnsembleMember:
        return self._members[gate_index(self._config.names, name or self.defaults.gate)]

    def encode(self, text: str, gate: str | None = None) -> list[int]:
        """Returns a text in a gate's ids, without special tokens; None: the default gate."""
        check_bytes([text], "the text")
        return self._gate(gate).tokenizer.encode_rendered(text)

    def decode(self, token_ids: Rows[int], gate: str | None = None) -> bytes:
        """Returns the bytes that ids of a gate write."""
        tokenizer = self._gate(gate).tokenizer
        last = len(tokenizer.token_bytes) - 1
        return tokenizer.decode([check_int(RequestError, "each token id", each, 0, last) for each in token_ids])

    def prompt_tokens(self, prompt: Prompt, params: SamplingParams) -> dict[str, list[int]]:
        """Returns a prompt in the ids of each participant by name, also where that is too long."""
        members = self._participants(self.defaults.resolve(params))
        _, rendered = render_for(prompt, members, params.parse_special, bounded=False)
        return {member.name: each.read().token_ids for member, each in zip(members, rendered, strict=True)}

    def context(self, params: SamplingParams) -> int | None:
        """Returns the smallest context of a request's participants, in tokens; None where none has a limit."""
        members = self._participants(self.defaults.resolve(params))
        return min((member.context for member in members if member.context is not None), default=None)

    def check(self, params: SamplingParams) -> None:
        """Checks parameters against the members: gate, weights, tokens of ``logit_bias``, grammar. Logs no warning.

        Raises:
            RequestError: One does not fit.
        """
        settings = self.defaults.resolve(params, warn=False)
        logit_adjustment(params, self._members[settings.gate], self._participants(settings), self._union)
        if params.grammar is not None:
            self._compiler.start(params.grammar, params.max_tokens)

    def request(
        self, prompt: AnyPrompt, params: SamplingParams | None, overrides: Mapping[str, Any], label: str = ""
    ) -> tuple[Request, OutputProcessor]:
        """Returns a request, with the id that callers see, and the processor of its output.

        Raises:
            RequestError: The prompt or an argument is wrong.
        """
        params = resolved(params, overrides)
        if params.n != 1:
            raise RequestError(f"n must be 1 here, not {params.n}; call generate_choices for several answers")
        return self.choices(prompt, params, label)[0]

    def choices(
        self, prompt: AnyPrompt, params: SamplingParams, label: str = ""
    ) -> list[tuple[Request, OutputProcessor]]:
        """Returns a request for each of ``n`` answers to a prompt; else as `request`."""
        settings = self.defaults.resolve(params)
        read = self._read(prompt, settings, params)
        form = _answer_form(read.conversation, params.grammar, self._members[settings.gate])
        first = secrets.randbits(63) if params.seed is None else params.seed
        return [
            self._answering(params, settings, form, read, label, choice_seed(first, index)) for index in range(params.n)
        ]

    def _read(self, prompt: AnyPrompt, settings: RequestSettings, params: SamplingParams) -> EncodedVoices:
        """Returns the voices that read a request's prompt."""
        if settings.by_perplexity and isinstance(prompt, (DocumentPrompt, VoicesPrompt)):
            raise RequestError(
                "weights='perplexity' follow from one prompt that all members read, not from documents or voices; give "
                "weights as numbers"
            )
        if settings.threshold == 0 and isinstance(prompt, VoicesPrompt):
            prompt = voices_of_gate(prompt, self._config.names, self._config.names[settings.gate])
        return encode_voices(prompt, self._weights(settings), params.parse_special)

    def _weights(self, settings: RequestSettings) -> dict[EnsembleMember, float]:
        """Returns the weight of each participant, in the ensemble's order."""
        return {self._members[index]: weight for index, weight in settings.weights.items()}

    def _answering(
        self,
        params: SamplingParams,
        settings: RequestSettings,
        form: AnswerForm,
        read: EncodedVoices,
        label: str,
        seed: int,
    ) -> tuple[Request, OutputProcessor]:
        """Returns one answer's request and the processor of its output."""
        members = self._participants(settings)
        voices = sequences(read.voices)
        request = self._new_request(
            params,
            settings,
            voices,
            label,
            sampler=Sampler(params, seed),
            seed=seed,
            adjustment=logit_adjustment(params, self._members[settings.gate], members, self._union),
            constraint=None if form.grammar is None else self._compiler.start(form.grammar, budget(params, voices)),
            drafts=frozenset(self._config.drafts or ()) if params.drafts else frozenset(),
            turn_ends=() if form.parser is None or params.grammar is not None else _turn_ends(members),
        )
        parser = None if form.parser is None else form.parser()
        return request, OutputProcessor(parser, params.token_stats, request.participants, self._absence)

    def cut(self, continuation: Continuation, params: SamplingParams | None) -> tuple[bytes, ...]:
        """Returns the union tokens as which a continuation is scored; errors as in `score_request`."""
        gate = self._members[self.defaults.resolve(resolved(params, {})).gate]
        return given_tokens(continuation, gate.tokenizer, self._union)

    def score_request(
        self, prompt: Prompt, continuation: Continuation, params: SamplingParams, label: str = ""
    ) -> tuple[Request, OutputProcessor]:
        """Returns a request that scores a given text, and the processor of its output.

        Raises:
            RequestError: The prompt, the continuation or an argument is wrong.
            UnwritableTextError: The gate's vocabulary cannot represent the continuation.
        """
        _refuse_unscored(params)
        settings = self.defaults.resolve(params)
        members = self._participants(settings)
        if isinstance(prompt, str) and not prompt:
            texts = [EncodedPrompt(opening_ids(member.tokenizer)) for member in members]
        else:
            _, texts = encode_prompt(prompt, members, params.parse_special)
        weights = zip(self._weights(settings).items(), texts, strict=True)
        voices = sequences([EncodedVoice(member, weight, text) for (member, weight), text in weights])
        tokens = self.cut(continuation, params)
        params = replace(params, max_tokens=len(tokens), temperature=0.0, stop=(), logprobs=params.logprobs or 0)
        request = self._new_request(
            params,
            settings,
            voices,
            label,
            sampler=FixedTokens([self._union.ids[token] for token in tokens]),
            seed=0,
            continuation=tokens,
            drafts=frozenset({KIND}) if params.drafts and self._config.drafts else frozenset(),
        )
        return request, OutputProcessor(None, params.token_stats)

    def _new_request(
        self, params: SamplingParams, settings: RequestSettings, voices: list[Sequence], label: str, **own: Any
    ) -> Request:
        """Returns a request of this ensemble; ``own`` are fields that generating and scoring set differently."""
        check_prior(voices, settings)
        gate = choose_gate(voices, self._members[settings.gate], named=params.gate is not None, settings=settings)
        if settings.threshold == 0:
            # The gate decides every step.
            voices = [gate]
        return Request(
            request_id=uuid.uuid4().hex,
            label=label,
            ensemble_id=self._ensemble_id,
            params=params,
            voices=voices,
            gate=gate,
            threshold=settings.threshold,
            union=self._union,
            combiner=combiner_named(settings.combine),
            document_rule=document_rule_named(settings.combine_documents),
            gate_rule=gate_named(settings.gate_rule),
            settings=self.defaults.effective(params, settings, own["seed"], documents=read_documents(voices)),
            written=bytearray(prompt_bytes(gate)),
            other_prompts=other_prompts(voices, gate),
            failures=self._config.failures,
            measurement=measurement(voices, self._config, sets_weights=True) if settings.by_perplexity else None,
            prefill_seconds=self._config.prefill_seconds / len({voice.member for voice in voices}),
            **own,
        )

    def likelihood_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        label: str = "",
        continuation: bytes = b"",
        temperatures: tuple[float, ...] = (),
    ) -> tuple[Request, OutputProcessor]:
        """Returns a request that measures how likely every member finds a prompt; see `likelihood_request`."""
        _, texts = encode_prompt(prompt, self._members, params.parse_special)
        pairs = zip(self._members, texts, strict=True)
        voices = [Sequence(member, 1.0, tokenized(member, text)) for member, text in pairs]
        ids = {"label": label, "ensemble_id": self._ensemble_id}
        request = likelihood_request(voices, params, self._config, self._union, continuation, temperatures, **ids)
        return request, OutputProcessor(None, params.token_stats)

    def warm_request(
        self, prompt: DocumentPrompt, pins: bool, params: SamplingParams, label: str = ""
    ) -> tuple[Request, OutputProcessor]:
        """Returns a request that keeps the one document of a prompt in every member's KV cache; see `Ensemble.warm`."""
        check_keeps_documents(self._config)
        voices = sequences(kept_voices(prompt, self._members, params.parse_special))
        request = reading_request(
            voices, params, self._config, self._union, pins=pins, label=label, ensemble_id=self._ensemble_id
        )
        return request, OutputProcessor(None)

    def without_chat_template(self, params: SamplingParams) -> list[str]:
        """Returns the names of a request's participants that have no chat template."""
        members = self._participants(self.defaults.resolve(params))
        return [member.name for member in members if not member.tokenizer.hf.chat_template]

    def _participants(self, settings: RequestSettings) -> list[EnsembleMember]:
        return [self._members[index] for index in settings.weights]


def _refuse_unscored(params: SamplingParams) -> None:
    """Raises a `RequestError` for parameters that a score cannot have."""
    defaults = SamplingParams()
    for name in ("grammar", "n", "presence_penalty", "frequency_penalty", "logit_bias"):
        value = getattr(params, name)
        if value != getattr(defaults, name):
            raise RequestError(f"a score is that of the plain distribution: leave out {name}, which is {quote(value)}")


def _turn_ends(members: Rows[EnsembleMember]) -> tuple[str, ...]:
    """Returns what ends an answer in the text of members whose models do not end their turns."""
    ends = [turn_ends(member.tokenizer.hf.chat_template) for member in members]
    return tuple(dict.fromkeys(end for own in ends for end in own))


def _answer_form(conversation: Conversation | None, grammar: Grammar | None, gate: EnsembleMember) -> AnswerForm:
    """Returns the form of the answer to a conversation, or to a string; the gate's template may open its reasoning."""
    if conversation is None:
        return AnswerForm(grammar, None)
    native = uses_native_tools(gate.tokenizer, conversation)
    inside = opens_thinking(gate.tokenizer, render_conversation(gate.tokenizer, conversation, native))
    return AnswerForm.of(conversation, grammar, inside)
