"""A conversation with an ensemble, and the settings that its commands change."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gac_core.chat.conversation import Message
from gac_core.cli.chat_commands import COMMANDS, Command
from gac_core.cli.requests import threshold_argument
from gac_core.cli.trace import check_format, write_trace
from gac_core.ensemble import Ensemble
from gac_core.errors import GaCError, RequestError
from gac_core.evaluation.settings import parse_source
from gac_core.integration.documents import free_place
from gac_core.output import OutputChunk, RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.trace import trace_of
from gac_core.trace.documents import doubt_facts
from gac_core.voices import PLACE, AnyPrompt, Document, DocumentPrompt

_DEFAULT = "default"

DOCUMENT_SYSTEM = "Answer from this text.\n\n{document}"
"""The system message if there are documents and no other one was given."""

SHOWN_DOCUMENTS = 5
"""How many documents ``/stats`` shows at most."""


@dataclass(frozen=True)
class Turn:
    """A finished answer.

    Attributes:
        prompt: The messages that it answers, with the documents if there are any.
        params: The parameters of the request.
        output: The answer.
    """

    prompt: AnyPrompt
    params: SamplingParams
    output: RequestOutput


class ChatSession:
    """The messages of a conversation, its settings and its last answer.

    Args:
        ensemble: Answers.
        params: Parameters of requests that no command changes; ``token_stats`` is set in any case.
        settings: Parameters that commands change, by name: ``weights``, ``threshold``, ``gate``, ``combine``; and
            ``combine_documents``.
        system: The system message; empty: none, or `DOCUMENT_SYSTEM` if there are documents.
        documents: Documents, each of which every member reads in place of ``{document}`` in the system message.

    Raises:
        RequestError: A setting is wrong, or the system message has no place for the documents.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        params: SamplingParams | None = None,
        settings: dict[str, Any] | None = None,
        system: str = "",
        documents: Sequence[Document] | None = None,
    ) -> None:
        self.ensemble = ensemble
        self.documents = documents
        self.system = self._checked(system or ("" if documents is None else DOCUMENT_SYSTEM))
        self.messages: list[Message] = []
        self.last: Turn | None = None
        self._params = params or SamplingParams()
        self._settings: dict[str, Any] = {}
        self._handlers: dict[str, Callable[[str], str]] = {
            "weights": lambda text: self._set("weights", text, lambda: parse_source(text, ensemble.names)),
            "threshold": lambda text: self._set("threshold", text, lambda: threshold_argument(text)),
            "gate": lambda text: self._set("gate", text, lambda: text),
            "combine": lambda text: self._set("combine", text, lambda: text),
            "stats": lambda text: self._stats(),
            "trace": self._trace,
            "system": self._system,
            "reset": lambda text: self._reset(),
            "help": lambda text: _help(),
        }
        self._accept(settings or {})

    @property
    def params(self) -> SamplingParams:
        """The parameters of the next request."""
        return self._params.with_overrides({**self._settings, "token_stats": True})

    def ask(self, text: str) -> Generator[OutputChunk, None, None]:
        """Streams the answer to a message; both become part of the conversation.

        What was streamed of an answer counts as the answer if the iterator is closed before its end, or if it raises
        something that is not an error of this library. Without any text, and after an error, the message is forgotten.

        Raises:
            GaCError: As `Ensemble.stream`.
        """
        message = Message("user", text)
        prompt, params = self._prompt(message), self.params
        written = ""
        try:
            for chunk in self.ensemble.stream(prompt, params):
                written += chunk.text
                if chunk.output is not None:
                    self.last = Turn(prompt, params, chunk.output)
                yield chunk
        except GaCError:
            raise
        except BaseException:
            self._remember(message, written)
            raise
        self._remember(message, written)

    def _prompt(self, message: Message) -> AnyPrompt:
        """Returns what a message asks."""
        turns = (*self.messages, message)
        if self.documents is None:
            return (Message("system", self.system), *turns) if self.system else turns
        before, after = self.system.split(PLACE)
        place = free_place("\n".join([before, after, *(turn.content for turn in turns)]))
        return DocumentPrompt((Message("system", before + place + after), *turns), self.documents, place=place)

    def _checked(self, system: str) -> str:
        """Returns a system message, which must contain the place of the documents once if there are any."""
        if self.documents is not None and system.count(PLACE) != 1:
            raise RequestError(
                f"the system message must contain {PLACE} once, where each document is read, not "
                f"{system.count(PLACE)} times; for example: {DOCUMENT_SYSTEM!r}"
            )
        return system

    def _remember(self, message: Message, answer: str) -> None:
        if answer:
            self.messages += [message, Message("assistant", answer)]

    def run(self, command: Command) -> str:
        """Runs a command other than ``/quit`` and returns what to show.

        Raises:
            GaCError: The command's value is wrong, or there is no answer yet.
        """
        return self._handlers[command.name](command.argument)

    def _accept(self, settings: dict[str, Any]) -> None:
        """Changes settings if the ensemble accepts them all."""
        self.ensemble.check(self._params.with_overrides(settings))
        self._settings = settings

    def _set(self, name: str, text: str, read: Callable[[], Any]) -> str:
        """Sets one parameter from the text of a command; shows it without a text."""
        if text == _DEFAULT:
            self._accept({key: value for key, value in self._settings.items() if key != name})
        elif text:
            self._accept({**self._settings, name: read()})
        return f"{name}: {self._shown(name)}"

    def _shown(self, name: str) -> str:
        if name not in self._settings:
            configured = self.ensemble.gate if name == "gate" else getattr(self.ensemble.config, name, None)
            return _DEFAULT if name == "weights" else f"{_value(configured)} (default)"
        value = self._settings[name]
        if name == "weights" and not isinstance(value, str):
            pairs = zip(self.ensemble.names, value, strict=True)
            return ", ".join(f"{member} {number:g}" for member, number in pairs)
        return _value(value)

    def _system(self, text: str) -> str:
        if text:
            self.system = self._checked("" if text == "none" else text)
        return f"system message: {self.system or 'none'}"

    def _reset(self) -> str:
        self.messages, self.last = [], None
        return "the conversation is empty"

    def _answered(self) -> Turn:
        if self.last is None:
            raise RequestError("there is no finished answer yet; send a message first")
        return self.last

    def _stats(self) -> str:
        return describe(self._answered().output)

    def _trace(self, text: str) -> str:
        if not text:
            raise RequestError("/trace needs the name of a file that ends in .html or .json")
        path, turn = Path(text), self._answered()
        check_format("/trace", path)
        write_trace("/trace", path, trace_of(self.ensemble, turn.prompt, turn.output, turn.params))
        return f"wrote {path}"


def _value(value: object) -> str:
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(f"{'/' + name:{width}} {text}" for name, text in COMMANDS.items())


def top_documents(output: RequestOutput, count: int) -> list[tuple[str, float]]:
    """Returns the documents with the largest shares of an answer, by id, largest first; empty without documents."""
    return sorted(output.document_shares.items(), key=lambda pair: (-pair[1], pair[0]))[:count]


def describe(output: RequestOutput) -> str:
    """Returns what an answer cost, and how far the members agreed, as lines of text."""
    stats, settings = output.stats, output.stats.settings
    mode = "every step ensembled"
    if settings.threshold is not None:
        share = f"{stats.share_ensembled:.0%} of the steps ensembled"
        mode = f"{share}; gate {settings.gate}, threshold {settings.threshold:g}"
    lines = [
        f"tokens      {output.usage.completion_tokens} in {stats.total_seconds:.2f} s; first after "
        f"{stats.first_token_seconds:.2f} s",
        f"steps       {mode}",
    ]
    if stats.confidence is not None:
        lines.append(f"confidence  {stats.confidence:.0%}")
    if stats.agreement is not None:
        lines.append(f"agreement   {stats.agreement:.0%}")
    if stats.divergence is not None:
        lines.append(f"divergence  {stats.divergence:.3f} nats")
    if output.document_shares:
        shown = ", ".join(f"{name} {share:.0%}" for name, share in top_documents(output, SHOWN_DOCUMENTS))
        lines.append(f"documents   {shown}")
    if output.document_shares and output.doubt is not None:
        lines.append(f"doubt       {doubt_facts(output.doubt)}")
    for name, member in stats.members.items():
        weight = settings.weights.get(name, 0.0)
        lines.append(
            f"{name}: weight {weight:.0%}, {member.forwards} forwards over {member.tokens} tokens "
            f"({member.reused_tokens} reused), {member.seconds:.2f} s"
        )
    return "\n".join(lines)
