"""`Ensemble`: several models that answer as one.

torch and transformers, which take seconds to import, are imported with the engine, when the first ensemble is loaded.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gac_core.batches import Batches
from gac_core.checks import check_number
from gac_core.choices import Choices
from gac_core.config import EnsembleConfig
from gac_core.describing import Describing
from gac_core.engine.answer_stream import astream_events
from gac_core.engine.calls import Call, answers, new_call
from gac_core.engine.delivery import stream_events
from gac_core.engine.session import CLOSE_TIMEOUT
from gac_core.errors import ConfigError, RequestError
from gac_core.events import Listener
from gac_core.health import EnsembleHealth
from gac_core.loading import ModelLike, configured, fork_safe, from_environment
from gac_core.member_config import Weights
from gac_core.output import OutputChunk, RequestOutput, afold, fold
from gac_core.prompt_likelihoods import PromptLikelihoods
from gac_core.sampling import SamplingParams
from gac_core.scoring import Scoring
from gac_core.tokenizing import Tokenizing
from gac_core.voices import AnyPrompt, Documents, Voice, as_prompt
from gac_core.warming import Warming

if TYPE_CHECKING:
    from gac_core.engine.frontend import Frontend
    from gac_core.model.member import Member


class Ensemble(Batches, Choices, Scoring, PromptLikelihoods, Tokenizing, Warming, Describing):
    """Several causal language models that answer as one (GaC, arXiv 2406.12585).

    At every token the members' next-token distributions are mapped onto the union of their vocabularies and averaged;
    the winning token is fed back to each member in its own tokens. With a threshold, the gate decides alone while it is
    sure. Safe to use from many threads and event loops at once; requests that arrive together run as one batch.

    Args:
        members: Loaded members, in the order of ``config.members``.
        config: Weights, gate, threshold and limits.

    Example:
        >>> with Ensemble.load(["model-a", "model-b"], threshold=0.5) as ensemble:  # doctest: +SKIP
        ...     print(ensemble.generate("The capital of France is", max_tokens=5).text)
    """

    def __init__(self, members: Sequence[Member], config: EnsembleConfig) -> None:
        if config.deterministic and not all(member.deterministic for member in members):
            raise ConfigError("deterministic=True needs members that were loaded with deterministic=True")
        if [member.name for member in members] != config.names:
            raise ConfigError(f"members {[m.name for m in members]} are not those of the config: {config.names}")
        from gac_core.engine.frontend import connect

        self._attach(connect(members, config))

    def _attach(self, frontend: Frontend) -> None:
        self.config = frontend.config
        self._members = frontend.members
        self._union, self._input_processor, self._session = frontend.union, frontend.input_processor, frontend.session
        self._introduce(printed=frontend.progress_shown)
        # Not bound to self, so that an unreferenced ensemble is closed, at the latest when Python exits.
        self._finalizer = weakref.finalize(self, self._session.finalize)

    @classmethod
    def load(
        cls,
        models: Sequence[ModelLike],
        *,
        weights: Weights | None = None,
        dtype: str | None = None,
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        quantization: str | None = None,
        **settings: Any,
    ) -> Ensemble:
        """Loads models by name or folder.

        A model that another ensemble of this process uses with the same dtype, device and revision is not loaded
        again: ensembles share models, and their KV caches where the settings of those are equal.

        Args:
            models: Names on a model hub, folders, mappings or `MemberConfig`, one or more.
            weights: As in `EnsembleConfig`, in place of those of single models. Default 1 each.
            dtype: For members that do not set their own: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            device: For members that set neither ``device`` nor ``device_map``.
            device_map: Likewise.
            quantization: For members that do not set their own: ``"8bit"`` or ``"4bit"``.
            **settings: Fields of `EnsembleConfig`, such as ``gate``, ``threshold``, ``alignment``; None: default.

        Raises:
            ConfigError: A setting is wrong.
            UnknownArgumentError: A setting is not known.
            ModelLoadError: A model cannot be loaded.
        """
        how: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map}
        return cls.from_config(configured(models, weights=weights, quantization=quantization, **how, **settings))

    @classmethod
    def from_config(cls, config: EnsembleConfig | str | Path) -> Ensemble:
        """`load` from a configuration or a YAML file.

        Raises:
            ConfigError: A setting is wrong.
            ModelLoadError: A model cannot be loaded.
        """
        given = config if isinstance(config, EnsembleConfig) else EnsembleConfig.from_yaml(config)
        from gac_core.engine.frontend import connect_pooled

        ensemble = cls.__new__(cls)
        ensemble._attach(fork_safe(lambda: connect_pooled(given)))
        return ensemble

    @classmethod
    def shared(
        cls,
        models: Sequence[ModelLike] | None = None,
        *,
        weights: Weights | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> Ensemble:
        """`load`, with defaults from environment variables, as the wrappers for frameworks use it.

        Args:
            models: As in `load`; None takes the configuration that the environment variable ``GAC_CONFIG`` names.
            weights: As in `load`.
            device: As in `load`; None takes that of the environment variable ``GAC_DEVICE``, if it is set.
            **settings: As in `load`.

        Raises:
            ConfigError: A setting is wrong, or there are neither models nor ``GAC_CONFIG``.
            ModelLoadError: A model cannot be loaded.
        """
        return cls.from_config(from_environment(models, weights=weights, device=device, **settings))

    # ---- facts

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._session.closed or not self._finalizer.alive

    @property
    def names(self) -> list[str]:
        """The members' names, in order."""
        return self.config.names

    @property
    def gate(self) -> str:
        """Name of the gate of thresholded mode; where none is configured, the default of `EnsembleConfig.gate`."""
        return self._input_processor.defaults.gate

    @property
    def vision_members(self) -> tuple[str, ...]:
        """Names of the members that read images; the others read the text alone."""
        return self._input_processor.vision_members

    @property
    def context(self) -> int | None:
        """`context_for` a request with the default parameters."""
        return self.context_for(SamplingParams())

    def context_for(self, params: SamplingParams) -> int | None:
        """Returns the longest text that every participant of a request can read, in tokens; None without a limit."""
        return self._input_processor.context(params)

    @property
    def union_size(self) -> int:
        """Entries of the union vocabulary, the end of text included."""
        return len(self._union)

    def without_chat_template(self, params: SamplingParams | None = None) -> list[str]:
        """Returns the names of the members that would take part in a request and have no chat template.

        Args:
            params: Its parameters; at a threshold of 0 only its gate takes part. Default `SamplingParams()`.

        Raises:
            RequestError: The gate is not a member.
        """
        return self._input_processor.without_chat_template(params or SamplingParams())

    def check(self, params: SamplingParams) -> None:
        """Checks parameters against the members; raises a `RequestError` if one does not fit."""
        self._input_processor.check(params)

    def health(self) -> EnsembleHealth:
        """Returns the state of the ensemble and its members; does not wait for forwards."""
        return self._session.health()

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Has a function called with events (`gac_core.Event`), in the library's threads; returns what removes it."""
        return self._session.add_listener(listener)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ensemble:
        # A copied object that references an ensemble references the same one.
        return self

    # ---- requests

    def _call(
        self, prompt: AnyPrompt, params: SamplingParams | None, overrides: Mapping[str, Any], request_id: str | None
    ) -> Call:
        return new_call(self._session, answers(self._input_processor, [prompt])[0], params, overrides, request_id)

    def generate(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> RequestOutput:
        """Answers one prompt.

        Args:
            prompt: A string, or a conversation: a list of `Message` or of mappings with ``role`` and ``content``; or a
                `DocumentPrompt` or `VoicesPrompt`.
            params: What is asked for; default `SamplingParams()`.
            voices: Which member reads which prompt, in place of ``prompt``; short for a `VoicesPrompt`.
            documents: Documents, each of which every member reads in a voice of its own, at the place
                ``{document}`` of the prompt; short for a `DocumentPrompt`.
            request_id: Its id in its output, errors and log records; need not be unique. Default: a new one.
            **overrides: Single values in place of those of ``params``.

        Raises:
            RequestError: The prompt or an argument is wrong.
            MemberError: A member failed.
            RequestTimeoutError: It took longer than ``timeout``.
            EngineClosedError: The ensemble is closed.
        """
        asked = as_prompt(prompt, voices, documents)
        return fold(self.stream(asked, params, request_id=request_id, **overrides))

    def stream(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> Iterator[OutputChunk]:
        """Streams one answer; arguments and errors as in `generate`. Giving the iterator up frees the engine."""
        asked = as_prompt(prompt, voices, documents)
        return stream_events(self._session, self._call(asked, params, overrides, request_id), self)

    async def agenerate(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> RequestOutput:
        """`generate` for event loops; cancelling it frees the engine."""
        asked = as_prompt(prompt, voices, documents)
        return await afold(self.astream(asked, params, request_id=request_id, **overrides))

    def astream(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> AsyncIterator[OutputChunk]:
        """`stream` for event loops; closing or cancelling it frees the engine."""
        asked = as_prompt(prompt, voices, documents)
        return astream_events(self._session, self._call(asked, params, overrides, request_id))

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Ends the requests still running with an `EngineClosedError` and frees the models. May be called twice.

        Models that other ensembles use stay loaded. A step that is running is not interrupted. If it does not return
        in time, the requests are ended all the same, with an error that names the member whose forward is running; the
        memory is freed when the step returns.

        Args:
            timeout: Seconds to wait for the running step, 0 or more. Default 30. None waits without a limit.
        """
        if timeout is not None:
            timeout = check_number(RequestError, "timeout", timeout, 0, threading.TIMEOUT_MAX)
        self._finalizer.detach()
        self._session.close(timeout)

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
