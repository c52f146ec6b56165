"""GaC: several open language models that answer as one, token by token.

Importing it takes a fraction of a second: torch and transformers are imported when the first ensemble is loaded.
"""

from typing import TYPE_CHECKING

from gac_core.attribution import Citation
from gac_core.chat.conversation import Conversation, Message, Prompt
from gac_core.chat.tools import InvalidToolCall, Tool, ToolCall
from gac_core.config import EnsembleConfig
from gac_core.doubt import AbsenceCalibration, Doubt
from gac_core.engine.answer_stream import AnswerStream
from gac_core.ensemble import Ensemble
from gac_core.errors import (
    AnswerError,
    ChatTemplateError,
    ConfigError,
    EmptyPromptError,
    EngineClosedError,
    EngineStuckError,
    GaCError,
    GrammarError,
    ImageError,
    InvalidLogitsError,
    MemberError,
    MemberLostError,
    MemberTimeoutError,
    ModelLoadError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    UnknownArgumentError,
    UnknownSettingError,
    UnwritableTextError,
    quote,
    shorten,
)
from gac_core.events import Event, ForwardDone, Listener, MemberFailed, MemberRecovered, StepDone
from gac_core.grammar.grammar import Grammar
from gac_core.health import EnsembleHealth, MemberHealth
from gac_core.images import Image, PlacedImage
from gac_core.integration.arguments import (
    CONVERSATION_ARGUMENTS,
    CallArguments,
    check_tool_choice,
    own_params,
    read_tool_choice,
    request_params,
    split_arguments,
    with_top_logprobs,
)
from gac_core.integration.documents import DOCUMENT_ARGUMENTS, document_prompt, free_place
from gac_core.integration.fields import (
    CONVERSATION_FIELDS,
    ENSEMBLE_FIELDS,
    FIXED_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    WRAPPER_FIELDS,
    WrapperField,
    field_error,
)
from gac_core.integration.lease import EnsembleLease
from gac_core.integration.metadata import TokenCounts, as_logprobs, as_metadata, token_counts
from gac_core.integration.sources import member_weights, open_ensemble
from gac_core.integration.structured import (
    StructuredOutput,
    check_tool_calls,
    read_json_answer,
    recursive_schema,
    with_recursive_parameters,
)
from gac_core.integration.wrapper import EnsembleModel
from gac_core.likelihood import Likelihood
from gac_core.member_config import MemberConfig
from gac_core.output import (
    DroppedMember,
    EffectiveSettings,
    FinishReason,
    MemberStats,
    OutputChunk,
    RequestOutput,
    RequestStats,
    ToolCallChunk,
    Usage,
    fold,
)
from gac_core.placement.planner import PlacementError
from gac_core.sampling import SamplingParams
from gac_core.scoring import Score
from gac_core.settings import (
    ambient_combine,
    ambient_gate,
    ambient_threshold,
    ambient_weights,
    use_combine,
    use_gate,
    use_threshold,
    use_weights,
)
from gac_core.token_stats import MemberToken, TokenLogprob, TokenStats, Vote
from gac_core.voices import AnyPrompt, Document, DocumentPrompt, Voice, VoicesPrompt
from gac_core.warming import WarmedMember, WarmReport

if TYPE_CHECKING:
    from gac_core.model.pool import ModelInfo, ModelPool, default_pool

__version__ = "0.1.0"

__all__ = [
    "CONVERSATION_ARGUMENTS",
    "CONVERSATION_FIELDS",
    "DOCUMENT_ARGUMENTS",
    "ENSEMBLE_FIELDS",
    "FIXED_FIELDS",
    "LOADING_FIELDS",
    "SAMPLING_FIELDS",
    "WRAPPER_FIELDS",
    "AbsenceCalibration",
    "AnswerError",
    "AnswerStream",
    "AnyPrompt",
    "CallArguments",
    "ChatTemplateError",
    "Citation",
    "ConfigError",
    "Conversation",
    "Document",
    "DocumentPrompt",
    "Doubt",
    "DroppedMember",
    "EffectiveSettings",
    "EmptyPromptError",
    "EngineClosedError",
    "EngineStuckError",
    "Ensemble",
    "EnsembleConfig",
    "EnsembleHealth",
    "EnsembleLease",
    "EnsembleModel",
    "Event",
    "FinishReason",
    "ForwardDone",
    "GaCError",
    "Grammar",
    "GrammarError",
    "Image",
    "ImageError",
    "InvalidLogitsError",
    "InvalidToolCall",
    "Likelihood",
    "Listener",
    "MemberConfig",
    "MemberError",
    "MemberFailed",
    "MemberHealth",
    "MemberLostError",
    "MemberRecovered",
    "MemberStats",
    "MemberTimeoutError",
    "MemberToken",
    "Message",
    "ModelInfo",
    "ModelLoadError",
    "ModelPool",
    "OutputChunk",
    "PlacedImage",
    "PlacementError",
    "Prompt",
    "PromptTooLongError",
    "QueueFullError",
    "RequestError",
    "RequestOutput",
    "RequestStats",
    "RequestTimeoutError",
    "SamplingParams",
    "Score",
    "StepDone",
    "StructuredOutput",
    "TokenCounts",
    "TokenLogprob",
    "TokenStats",
    "Tool",
    "ToolCall",
    "ToolCallChunk",
    "UnknownArgumentError",
    "UnknownSettingError",
    "UnwritableTextError",
    "Usage",
    "Voice",
    "VoicesPrompt",
    "Vote",
    "WarmReport",
    "WarmedMember",
    "WrapperField",
    "ambient_combine",
    "ambient_gate",
    "ambient_threshold",
    "ambient_weights",
    "as_logprobs",
    "as_metadata",
    "check_tool_calls",
    "check_tool_choice",
    "default_pool",
    "document_prompt",
    "field_error",
    "fold",
    "free_place",
    "member_weights",
    "open_ensemble",
    "own_params",
    "quote",
    "read_json_answer",
    "read_tool_choice",
    "recursive_schema",
    "request_params",
    "shorten",
    "split_arguments",
    "token_counts",
    "use_combine",
    "use_gate",
    "use_threshold",
    "use_weights",
    "with_recursive_parameters",
    "with_top_logprobs",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports the names that need torch when they are first used."""
        if name not in ("ModelInfo", "ModelPool", "default_pool"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gac_core.model import pool

        return getattr(pool, name)

    def __dir__() -> list[str]:
        """Returns the public names, and the submodules that are imported."""
        return sorted({*globals(), *__all__})
