"""GaC: several open language models that answer as one, token by token."""

from gac_core.chat.conversation import Conversation, Message, Prompt
from gac_core.chat.tools import InvalidToolCall, Tool, ToolCall, tell_schema
from gac_core.config import EnsembleConfig
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
    InvalidLogitsError,
    MemberError,
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
from gac_core.grammar.grammar import Grammar
from gac_core.grammar.schema import is_recursive
from gac_core.member_config import MemberConfig
from gac_core.metadata import as_metadata
from gac_core.output import (
    EffectiveSettings,
    FinishReason,
    MemberStats,
    OutputChunk,
    RequestOutput,
    RequestStats,
    TokenLogprob,
    TokenStats,
    ToolCallChunk,
    Usage,
    fold,
)
from gac_core.sampling import SamplingParams
from gac_core.settings import SAMPLING_FIELDS, ambient_gate, ambient_threshold, request_params, use_gate, use_threshold
from gac_core.sources import ENSEMBLE_FIELDS, open_ensemble

__version__ = "0.1.0"

__all__ = [
    "ENSEMBLE_FIELDS",
    "SAMPLING_FIELDS",
    "AnswerError",
    "ChatTemplateError",
    "ConfigError",
    "Conversation",
    "EffectiveSettings",
    "EmptyPromptError",
    "EngineClosedError",
    "EngineStuckError",
    "Ensemble",
    "EnsembleConfig",
    "FinishReason",
    "GaCError",
    "Grammar",
    "GrammarError",
    "InvalidLogitsError",
    "InvalidToolCall",
    "MemberConfig",
    "MemberError",
    "MemberStats",
    "Message",
    "ModelLoadError",
    "OutputChunk",
    "Prompt",
    "PromptTooLongError",
    "QueueFullError",
    "RequestError",
    "RequestOutput",
    "RequestStats",
    "RequestTimeoutError",
    "SamplingParams",
    "TokenLogprob",
    "TokenStats",
    "Tool",
    "ToolCall",
    "ToolCallChunk",
    "UnknownArgumentError",
    "UnknownSettingError",
    "UnwritableTextError",
    "Usage",
    "ambient_gate",
    "ambient_threshold",
    "as_metadata",
    "fold",
    "is_recursive",
    "open_ensemble",
    "quote",
    "request_params",
    "shorten",
    "tell_schema",
    "use_gate",
    "use_threshold",
]
