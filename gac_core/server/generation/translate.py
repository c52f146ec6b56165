"""From the body of a request to prompts and parameters of the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gac_core.errors import (
    ChatTemplateError,
    EmptyPromptError,
    GaCError,
    GrammarError,
    ImageError,
    PromptTooLongError,
    RequestError,
    quote,
)
from gac_core.grammar.grammar import Grammar
from gac_core.sampling import SamplingParams
from gac_core.server.catalog import ServedModel
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.generation.conversations import conversation_of, requires_calls, structured_output
from gac_core.server.generation.documents import Sources, document_prompt, field_of_long_prompt, sources_of
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.common import ChoicesGrammar, GenerationBody, GrammarBody, RegexGrammar
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.settings import ServerSettings
from gac_core.voices import AnyPrompt, Document, DocumentPrompt

NO_CONTEXT_TOKENS = 4096
"""Longest answer of members whose context has no limit, where neither the request nor the settings set one."""

_SAME = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "n"),
    *("gate", "combine", "combine_documents", "gate_rule", "top_k", "min_p", "repetition_penalty", "drafts"),
)


@dataclass(frozen=True)
class Generation:
    """What a request asks the engine for.

    Attributes:
        served: The model.
        prompts: The prompts, each of which has ``params.n`` answers.
        params: The parameters.
        prompt_field: The field of the body that has the prompts.
        grammar_field: The field that determines the grammar; None without one.
        echo: Whether texts begin with the prompt.
        sources: The documents that have an address, by their ids.
    """

    served: ServedModel
    prompts: tuple[AnyPrompt, ...]
    params: SamplingParams
    prompt_field: str
    grammar_field: str | None = None
    echo: bool = False
    sources: Sources = field(default_factory=dict)

    @property
    def documents(self) -> list[Document]:
        """The documents of all prompts, one after the other."""
        own = (prompt.documents for prompt in self.prompts if isinstance(prompt, DocumentPrompt))
        return [cast(Document, document) for documents in own for document in documents]

    def as_api_error(self, error: BaseException) -> ApiError:
        """Returns an error as the client sees it, with the field of the body that it is about."""
        return as_api_error(error, self._field_of(error) if isinstance(error, RequestError) else None)

    def _field_of(self, error: RequestError) -> str | None:
        """Returns the field of the body that an error of the engine is about; None where that is not known."""
        if isinstance(error, PromptTooLongError):
            return field_of_long_prompt(error, self.documents, self.prompt_field)
        if isinstance(error, (EmptyPromptError, ChatTemplateError, ImageError)):
            return self.prompt_field
        if isinstance(error, GrammarError):
            return self.grammar_field
        # Messages about a parameter begin with its name.
        named = re.match("[a-z_]+", str(error))
        if named and named[0] in SamplingParams.names():
            return named[0]
        return refused_parameter({"gate": self.params.gate, "weights": self.params.weights}, self.served)


def chat_generation(body: ChatBody, served: ServedModel, settings: ServerSettings) -> Generation:
    """Returns what a chat completion asks for.

    Raises:
        ApiError: A field is wrong.
    """
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise _invalid("max_tokens", "max_tokens and max_completion_tokens differ; give one of them")
    if body.top_logprobs is not None and not body.logprobs:
        raise _invalid("top_logprobs", "top_logprobs needs logprobs: true")
    output = structured_output(body)
    grammar = _grammar(body.grammar)
    if output is not None and grammar is not None:
        raise _invalid("grammar", "grammar excludes response_format; give one of them")
    if grammar is not None and requires_calls(body):
        raise _invalid("grammar", "grammar is that of a text, but tool_choice allows calls only; leave one of them out")
    params = _params(
        body,
        served,
        settings,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar if output is None else output.grammar,
    )
    grammar_field = "response_format" if output is not None else "grammar" if grammar is not None else "tools"
    conversation = conversation_of(body, "" if output is None else output.instruction)
    prompt = document_prompt(body, conversation, "messages")
    return Generation(served, (prompt,), params, "messages", grammar_field, sources=sources_of(body))


def completion_generation(body: CompletionBody, served: ServedModel, settings: ServerSettings) -> Generation:
    """Returns what a completion asks for.

    Raises:
        ApiError: A field is wrong.
    """
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise _invalid("best_of", f"best_of is {body.best_of}, but only the value of n is supported; leave it out")
    if body.max_tokens == 0 and (not body.echo or body.logprobs is None or body.stream):
        raise _invalid("max_tokens", "max_tokens is 0, which needs echo and logprobs, without stream; give 1 or more")
    if body.echo and body.documents is not None:
        raise _invalid("echo", "echo repeats one prompt, but with documents there is one for each; leave echo out")
    texts = (body.prompt,) if isinstance(body.prompt, str) else tuple(body.prompt)
    prompts = tuple(document_prompt(body, text, "prompt") for text in texts)
    count = len(prompts) * (body.n or 1)
    if len(prompts) > 1 and count > settings.max_choices:
        raise _invalid(
            "prompt",
            f"{len(prompts)} prompts with n={body.n or 1} are {count} answers, more than "
            f"{settings.max_choices}; send several requests",
        )
    params = _params(
        body,
        served,
        settings,
        max_tokens=1 if body.max_tokens == 0 else body.max_tokens,
        logprobs=body.logprobs,
        grammar=_grammar(body.grammar),
    )
    return Generation(served, prompts, params, "prompt", "grammar", bool(body.echo))


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)


def _grammar(body: GrammarBody | None) -> Grammar | None:
    if body is None:
        return None
    try:
        if isinstance(body, RegexGrammar):
            return Grammar.regex(body.regex)
        return Grammar.choices(body.choices) if isinstance(body, ChoicesGrammar) else Grammar.lark_grammar(body.lark)
    except RequestError as error:
        raise as_api_error(error, "grammar") from error


def _params(
    body: GenerationBody, served: ServedModel, settings: ServerSettings, max_tokens: int | None, **own: Any
) -> SamplingParams:
    """Returns the parameters of a request.

    Args:
        body: Its body.
        served: Its model.
        settings: The server's settings.
        max_tokens: The longest answer that the body asks for.
        **own: Parameters that bodies write differently.
    """
    _check_limits(body, settings, max_tokens)
    values: dict[str, Any] = {"temperature": settings.temperature, "timeout": settings.request_timeout}
    values |= {name: getattr(body, name) for name in (*_SAME, "timeout") if getattr(body, name) is not None}
    values |= {name: value for name, value in own.items() if value is not None}
    if body.stop is not None:
        values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.logit_bias:
        values["logit_bias"] = {int(key): bias for key, bias in body.logit_bias.items()}
    if "threshold" in body.model_fields_set:
        values["threshold"] = body.threshold
    if body.weights is not None:
        values["weights"] = tuple(body.weights) if isinstance(body.weights, list) else body.weights
    if body.trace:
        values["token_stats"] = True
    values |= _alone(body, served)
    longest = max_tokens or settings.max_tokens
    try:
        if longest is not None:
            return SamplingParams(**values, max_tokens=longest)
        params = SamplingParams(**values)
        return params.with_overrides({"max_tokens": served.ensemble.context_for(params) or NO_CONTEXT_TOKENS})
    except RequestError as error:
        raise as_api_error(error, refused_parameter(values, served)) from error


def _alone(body: GenerationBody, served: ServedModel) -> dict[str, Any]:
    """Returns the parameters of a model that is one member, which leave no choice of members."""
    if served.member is None:
        return {}
    same = {"gate": (None, served.member), "weights": (None,), "threshold": (None, "default", 0)}
    for name, values in same.items():
        if getattr(body, name) not in values:
            raise _invalid(name, f"model {quote(served.id)} is one member alone; leave {name} out")
    return served.settings(documents=body.documents is not None)


def _check_limits(body: GenerationBody, settings: ServerSettings, max_tokens: int | None) -> None:
    """Raises if a request asks for more than the server allows."""
    if body.n is not None and body.n > settings.max_choices:
        raise _invalid("n", f"n is {body.n}, more than the {settings.max_choices} that this server allows; give less")
    if len(body.documents or ()) > settings.max_documents:
        raise _invalid(
            "documents",
            f"there are {len(body.documents or ())} documents, more than the {settings.max_documents} that this server "
            "allows; give less",
        )
    if settings.max_tokens is not None and max_tokens is not None and max_tokens > settings.max_tokens:
        field = "max_completion_tokens" if getattr(body, "max_completion_tokens", None) else "max_tokens"
        raise _invalid(
            field, f"{field} is {max_tokens}, more than the {settings.max_tokens} that this server allows; give less"
        )
    if settings.request_timeout is not None and body.timeout is not None and body.timeout > settings.request_timeout:
        raise _invalid(
            "timeout",
            f"timeout is {body.timeout:g}, more than the {settings.request_timeout:g} s that this server allows; give "
            "less",
        )
    if body.stream_options is not None and not body.stream:
        raise _invalid("stream_options", "stream_options needs stream: true")


def refused_parameter(values: Mapping[str, Any], served: ServedModel) -> str | None:
    """Returns the first parameter that a model refuses by itself; None where only several together are refused."""
    for name, value in values.items():
        try:
            served.ensemble.check(SamplingParams(**{name: value}))
        except GaCError:
            return name
    return None


def prompt_text(prompts: Sequence[AnyPrompt]) -> str:
    """Returns prompts as text for a log."""
    return "\n".join(prompt if isinstance(prompt, str) else repr(prompt) for prompt in prompts)
