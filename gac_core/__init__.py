"""GaC: several open language models that answer as one, token by token."""

from gac_core.chat import Message, Prompt
from gac_core.config import EnsembleConfig, MemberConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import (
    ChatTemplateError,
    ConfigError,
    EmptyPromptError,
    EngineClosedError,
    GaCError,
    GrammarError,
    InvalidLogitsError,
    MemberError,
    ModelLoadError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    UnknownArgumentError,
    UnwritableTextError,
)
from gac_core.grammar import Grammar
from gac_core.output import (
    FinishReason,
    MemberStats,
    OutputChunk,
    RequestOutput,
    RequestStats,
    TokenLogprob,
    Usage,
    as_metadata,
    fold,
)
from gac_core.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "ChatTemplateError",
    "ConfigError",
    "EmptyPromptError",
    "EngineClosedError",
    "Ensemble",
    "EnsembleConfig",
    "FinishReason",
    "GaCError",
    "Grammar",
    "GrammarError",
    "InvalidLogitsError",
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
    "SamplingParams",
    "TokenLogprob",
    "UnknownArgumentError",
    "UnwritableTextError",
    "Usage",
    "as_metadata",
    "fold",
]
