"""Keyword arguments of a call: parameters of the request, fields of the conversation, and unknown ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from gac_core.errors import RequestError, UnknownArgumentError, listed, quote
from gac_core.integration.fields import FIXED_FIELDS, SAMPLING_FIELDS
from gac_core.sampling import SamplingParams
from gac_core.settings import ambient_combine, ambient_gate, ambient_threshold, ambient_weights

_CHOICES = (
    "'auto', 'any', 'required', 'none', True, the name of a tool, or "
    '{"type": "function", "function": {"name": ...}}'
)

CONVERSATION_ARGUMENTS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "enable_thinking"})
"""Arguments of a call that are fields of its `Conversation` in every framework."""


@dataclass(frozen=True)
class CallArguments:
    """The keyword arguments of one call.

    Attributes:
        sampling: Parameters of the request, by name.
        conversation: Fields of its `Conversation`, by name.
        other: The framework's own.
    """

    sampling: Mapping[str, Any]
    conversation: Mapping[str, Any]
    other: Mapping[str, Any]


def split_arguments(
    given: Mapping[str, Any],
    conversation: Iterable[str] = CONVERSATION_ARGUMENTS,
    other: Iterable[str] = (),
) -> CallArguments:
    """Splits the keyword arguments of a call by what they set.

    Args:
        given: The arguments.
        conversation: The names that are fields of a `Conversation` here. Default `CONVERSATION_ARGUMENTS`.
        other: The names of the framework's own arguments. Default none.

    Raises:
        UnknownArgumentError: Unknown keyword argument.
    """
    conversation, other = frozenset(conversation), frozenset(other)
    known = SAMPLING_FIELDS | conversation | other
    if set(given) - known:
        fixed = sorted(FIXED_FIELDS & set(given) - known)
        remedy = f"{', '.join(fixed)} cannot be changed once the members are loaded; make a new model" if fixed else ""
        raise UnknownArgumentError(set(given) - known, known, remedy=remedy)

    def of(names: frozenset[str]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in names}

    return CallArguments(of(SAMPLING_FIELDS), of(conversation), of(other))


def request_params(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> SamplingParams:
    """Returns the parameters of one call.

    Args:
        defaults: A wrapper's own values; names that are not parameters are ignored.
        overrides: The call's arguments. `use_threshold`, `use_gate`, `use_weights` and `use_combine`
            stand between the two.

    Raises:
        UnknownArgumentError: Unknown keyword argument.
        RequestError: A value is out of its range.
    """
    unknown = set(overrides) - SAMPLING_FIELDS
    if unknown:
        raise UnknownArgumentError(unknown, SAMPLING_FIELDS)
    values = {name: value for name, value in defaults.items() if name in SAMPLING_FIELDS}
    values["threshold"] = ambient_threshold(values.get("threshold", "default"))
    values["gate"] = ambient_gate(values.get("gate"))
    values["weights"] = ambient_weights(values.get("weights"))
    values["combine"] = ambient_combine(values.get("combine"))
    values.update(overrides)
    if isinstance(values.get("logprobs"), bool):
        # As in OpenAI's interface, True asks for the chosen tokens' log-probabilities.
        values["logprobs"] = 1 if values["logprobs"] else None
    return SamplingParams(**values)


def own_params(defaults: Mapping[str, Any]) -> SamplingParams:
    """Returns the parameters that a wrapper's own values come to where no context such as `use_threshold` sets any.

    Args:
        defaults: The values; names that are not parameters are ignored.

    Raises:
        RequestError: A value is out of its range.
    """
    return Context().run(request_params, defaults, {})


def with_top_logprobs(values: Mapping[str, Any], top: int | None) -> dict[str, Any]:
    """Returns parameters in which ``logprobs`` is OpenAI's ``top_logprobs``, if that is given.

    Args:
        values: Parameters of a request by name.
        top: The value of ``top_logprobs``; None: not given.

    Raises:
        RequestError: ``logprobs`` asks for another number, or for none.
    """
    given = values.get("logprobs")
    if top is None:
        return dict(values)
    if given is not None and given is not True and (given is False or given != top):
        raise RequestError(
            f"top_logprobs={quote(top)} contradicts logprobs={quote(given)}; give logprobs=True, or one of them"
        )
    return {**values, "logprobs": top}


def read_tool_choice(choice: object, names: Sequence[str]) -> str | None:
    """Returns a tool choice in any of the frameworks' forms as `Conversation.tool_choice`.

    Args:
        choice: ``"auto"``, ``"none"``, ``"any"``, ``"required"``, True, the name of a tool, or a mapping in OpenAI's
            form ``{"type": "function", "function": {"name": ...}}`` or Anthropic's ``{"type": ..., "name": ...}``.
        names: The names of the tools.

    Returns:
        None for None and False, which leave the choice open.

    Raises:
        RequestError: The choice has another form, or names a tool that is not there.
    """
    if choice is None or choice is False:
        return None
    wanted = _wanted(choice)
    if wanted is True or wanted in ("any", "required"):
        return "required"
    if isinstance(wanted, str) and wanted in ("auto", "none", *names):
        return wanted
    raise RequestError(
        f"tool_choice must be {_CHOICES}, not {quote(choice)}; tools are: {listed(list(names)) or 'none'}"
    )


def check_tool_choice(choice: object) -> None:
    """Checks the form of a tool choice whose tools are not yet known.

    Args:
        choice: As in `read_tool_choice`; every name passes.

    Raises:
        RequestError: The choice has another form.
    """
    wanted = _wanted(choice)
    if not (choice is None or isinstance(wanted, bool) or (isinstance(wanted, str) and wanted)):
        raise RequestError(f"tool_choice must be {_CHOICES}, not {quote(choice)}")


def _wanted(choice: object) -> object:
    """Returns the name in a tool choice, or the choice itself."""
    if not isinstance(choice, Mapping):
        return choice
    function = choice.get("function")
    return function.get("name") if isinstance(function, Mapping) else choice.get("name") or choice.get("type")
