"""The fields of a framework's model: name, type, default and description of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from gac_core.errors import ConfigError, quote
from gac_core.rule_names import COMBINER_NAMES, CONTRAST, DOCUMENT_RULE_NAMES, GATE_NAMES, POWER
from gac_core.sampling import SamplingParams

SAMPLING_FIELDS = SamplingParams.names()
"""The names of all parameters of a request."""

ENSEMBLE_FIELDS = (
    *("weights", "dtype", "device", "device_map", "quantization", "commit", "alignment", "combine"),
    *("combine_documents", "gate_rule"),
    *("max_batch_size", "max_queue", "prefill_tokens", "prefill_seconds", "cache_gib"),
    *("document_cache_gib", "deterministic", "stuck_after"),
    *("on_member_failure", "min_members", "gate_must_live", "forward_timeout"),
    *("executor", "ray_address", "devices", "progress", "calibration", "absence"),
)
"""The names of the settings that configure the ensemble which is loaded from ``models``.

``weights``, ``alignment``, ``combine``, ``combine_documents`` and ``gate_rule`` are parameters of a request as well
(`SAMPLING_FIELDS`): a model's fields of these names are the defaults of its calls.
"""

LOADING_FIELDS = frozenset(ENSEMBLE_FIELDS) - SAMPLING_FIELDS
"""Those of `ENSEMBLE_FIELDS` that have no effect on an ensemble that is loaded already."""

FIXED_FIELDS = LOADING_FIELDS | {"models", "config", "ensemble"}
"""The fields of a framework's model that cannot be changed once the ensemble is loaded."""


@dataclass(frozen=True)
class WrapperField:
    """A field of a framework's model.

    Attributes:
        name: Its name.
        type: Its type, as in an annotation.
        default: Its default; None means the library's own default, or none.
        description: What it sets, in one or two sentences.
    """

    name: str
    type: Any
    default: Any
    description: str

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of pydantic's ``Field``."""
        return {"default": self.default, "description": self.description}


_DEFAULTS = {field.name: field.default for field in fields(SamplingParams)} | {"stop": None}


def _table(*rows: tuple[str, Any, str]) -> Mapping[str, WrapperField]:
    made = [WrapperField(name, type_, _DEFAULTS.get(name), description) for name, type_, description in rows]
    return MappingProxyType({field.name: field for field in made})


def _options(rules: Iterable[str]) -> str:
    """Returns the names of rules, quoted, as in ``"a", "b" or "c"``."""
    *first, last = (f'"{rule}"' for rule in rules)
    return " or ".join([", ".join(first), last]) if first else last


WRAPPER_FIELDS = _table(
    (
        "weights",
        dict[str, float] | list[float] | Literal["auto", "perplexity"] | None,
        'Weight of each member, in order or by name; or "auto": from the calibration, "perplexity": from each prompt. '
        "Default: 1 each, or those of the calibration.",
    ),
    ("dtype", str | None, 'For example "bfloat16". Default: as stored.'),
    ("device", str | None, 'For example "cuda:0". Default: placed among devices.'),
    ("device_map", Any, "Placement over devices, as in accelerate."),
    ("quantization", str | None, '"8bit" or "4bit". Default: none.'),
    ("commit", str | None, '"canonical" (default) or "context-free"; see EnsembleConfig.'),
    ("alignment", str | None, '"token", the only rule; see EnsembleConfig.'),
    (
        "combine",
        str | None,
        f"How distributions are combined: {_options([*COMBINER_NAMES, POWER])}. Default: the ensemble's.",
    ),
    (
        "combine_documents",
        str | None,
        f"How the distributions of several documents are combined: {_options([*DOCUMENT_RULE_NAMES, CONTRAST])}. "
        "Default: the ensemble's.",
    ),
    ("gate_rule", str | None, f"What the threshold is compared with: {_options(GATE_NAMES)}. Default: the ensemble's."),
    ("max_batch_size", int | None, "Requests that run at once. Default: 16."),
    ("max_queue", int | None, "Requests that may wait; more are refused. Default: 1024."),
    ("prefill_tokens", int | None, "Prompt tokens that one step reads at most. Default: 512."),
    ("prefill_seconds", float | None, "Seconds of prompt reading per step beside running requests. Default: 0.25."),
    ("cache_gib", float | None, "Memory per member for its KV cache, in GiB. Default: 1."),
    ("document_cache_gib", float | None, "Memory per member for documents that are kept, in GiB. Default: 0.5."),
    ("deterministic", bool | None, "Compute each request by itself, so that texts do not depend on other requests."),
    ("stuck_after", float | None, "Seconds after which a step counts as stuck. Default: 600."),
    ("on_member_failure", str | None, '"fail" (default) or "drop": go on without a member that fails.'),
    ("min_members", int | None, 'Members that a request needs at least, with "drop". Default: 1.'),
    ("gate_must_live", bool | None, 'With "drop", whether a thresholded request fails with its gate. Default: False.'),
    ("forward_timeout", float | None, "Seconds after which a forward counts as failed. Default: 300."),
    ("executor", str | None, '"local" (default) or "ray"; see EnsembleConfig.'),
    ("ray_address", str | None, "Ray cluster of the executor. Default: RAY_ADDRESS, else one on this machine."),
    ("devices", list[str] | None, "Devices among which members are placed by size. Default: all GPUs, else the CPU."),
    ("progress", bool | None, "Show progress bars while models load. Default: if stderr is a terminal."),
    ("calibration", str | dict[str, Any] | None, "A file made by gac calibrate, or its content. Default: none."),
    ("absence", str | dict[str, Any] | None, "A file made by gac calibrate-documents, or its content. Default: none."),
    ("gate", str | None, "Name of the gate member. Default: the ensemble's."),
    (
        "threshold",
        float | Literal["default"] | None,
        "Probability from which the gate decides alone; None: every step is ensembled. Default: the ensemble's.",
    ),
    ("max_tokens", int, "Tokens to generate at most."),
    ("temperature", float, "Sampling temperature; 0 is greedy."),
    ("top_k", int | None, "Sample from the k most probable tokens. Default: all."),
    ("top_p", float, "Sample from the smallest set of tokens with this probability mass."),
    ("min_p", float, "Smallest probability of a token, relative to the most probable one."),
    ("repetition_penalty", float, "Above 1, tokens of the prompt and the answer become less probable."),
    ("presence_penalty", float, "Above 0, tokens that the answer contains already become less probable."),
    ("frequency_penalty", float, "Above 0, tokens become less probable each time that the answer contains them."),
    ("logit_bias", dict[int | str | bytes, float] | None, "Added to log-probabilities of tokens. Default: nothing."),
    ("n", int, "Answers to each prompt."),
    ("seed", int | None, "Seed of sampling. Default: a random one."),
    ("stop", str | list[str] | None, "Strings that end the text."),
    ("logprobs", int | None, "Log-probabilities of this many tokens per position. Default: none."),
    ("grammar", Any, "What the text must look like: a gac_core.Grammar. Default: anything."),
    ("drafts", bool, "Speculative decoding; changes the cost only."),
    ("parse_special", bool, "Whether control tokens spelled out in a prompt, such as <|im_end|>, are read as such."),
    ("token_stats", bool, "Whether metadata give confidence, agreement and divergence of each token."),
    ("timeout", float | None, "Seconds that a call may take. Default: no limit."),
)
"""Every field that a wrapper may have because of `ENSEMBLE_FIELDS` and `SAMPLING_FIELDS`, by name."""

CONVERSATION_FIELDS = _table(
    (
        "tool_choice",
        str | bool | dict[str, Any] | None,
        'The default of calls that have tools: "auto", "any", "required" or True (calls only), "none", or the name of '
        'a tool, also in OpenAI\'s form; ignored without tools. Default: "auto".',
    ),
    (
        "parallel_tool_calls",
        bool | None,
        "Whether an answer may have several tool calls, as the default of calls that have tools. Default: True.",
    ),
    (
        "enable_thinking",
        bool | None,
        "Passed to chat templates that have this switch. Default: the template's own.",
    ),
)
"""Fields that a wrapper may have as the defaults of a `gac_core.Conversation`, by name."""


def field_error(errors: Sequence[Mapping[str, Any]], descriptions: Mapping[str, str | None]) -> ConfigError | None:
    """Returns the error of the first invalid field, with its value and description.

    Args:
        errors: What pydantic's ``ValidationError.errors()`` returns.
        descriptions: Descriptions of the fields that are the wrapper's, by name.

    Returns:
        None where the first invalid field is not one of ``descriptions``.
    """
    name = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
    if name not in descriptions:
        return None
    reasons = dict.fromkeys(each["msg"] for each in errors if each["loc"][:1] == errors[0]["loc"][:1])
    described = f" ({descriptions[name]})" if descriptions[name] else ""
    return ConfigError(f"{name} cannot be {quote(errors[0]['input'])}: {'; or '.join(reasons)}{described}")
