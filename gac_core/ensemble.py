"""`Ensemble`: several models that answer as one. The door to this package.

Each way in is a fold over the one below it: ``generate`` joins ``stream``, ``agenerate`` joins ``astream``, and both
streams read one queue that the engine's thread fills.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from gac_core.boundary_decoder import BoundaryDecoder
from gac_core.chat import Prompt, encode_prompt
from gac_core.commit import Writer, make_commit
from gac_core.config import EnsembleConfig, MemberConfig, as_member
from gac_core.constraint import Compiler
from gac_core.decoder import Decoder, StepDecoder
from gac_core.draft import SLOPE_CPU, SLOPE_GPU, PromptLookup
from gac_core.engine import Engine
from gac_core.errors import ConfigError, PromptTooLongError, RequestError
from gac_core.executor import LocalExecutor
from gac_core.member import Member
from gac_core.output import OutputChunk, RequestOutput, fold
from gac_core.poll import Poll
from gac_core.request import MemberText, Request
from gac_core.sampling import Sampler, SamplingParams
from gac_core.speculation import Drafting, SpeculativeDecoder
from gac_core.vocabulary import Alignment, UnionVocabulary
from gac_core.worker import Event, Worker

ModelLike = str | Path | Mapping[str, Any] | MemberConfig


class Ensemble:
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
        if [member.name for member in members] != config.names:
            raise ConfigError(f"members {[m.name for m in members]} are not those of the config: {config.names}")
        self.config = config
        self._members = list(members)
        self._union = UnionVocabulary([member.tokenizer for member in members])
        alignments = [Alignment(self._union, member.tokenizer, member.device) for member in members]
        executor = LocalExecutor(members)
        poll = Poll(executor, alignments, config.names)
        weights = [member.weight for member in config.members]
        tokenizers = [member.tokenizer for member in members]
        commits = [make_commit(config.commit, tokenizer) for tokenizer in tokenizers]
        writer = Writer(commits, [member.context for member in members])
        decoder: Decoder = StepDecoder(poll, self._union, weights, config.names, writer)
        if config.alignment == "boundary":
            decoder = BoundaryDecoder(poll, self._union, weights, config.names, tokenizers, writer, decoder)
        elif config.drafts:
            decoder = SpeculativeDecoder(poll, self._union, weights, config.names, writer, self._drafting(members))
        self._compiler = Compiler(self._union)
        engine = Engine(executor, decoder, config.max_batch_size)
        self._encoding = threading.Lock()
        self._worker = Worker(engine, config.max_batch_size + config.max_queue)
        # Not bound to self, so that an ensemble nobody holds any more is closed, at the latest when Python exits.
        self._finalizer = weakref.finalize(self, self._worker.close)

    def _drafting(self, members: Sequence[Member]) -> Drafting:
        drafts = self.config.drafts or ()
        weights = [member.weight for member in self.config.members]
        on_cpu = any(member.device.type == "cpu" for member in members)
        return Drafting(
            lookup=PromptLookup([member.tokenizer for member in members], weights) if "lookup" in drafts else None,
            ahead="ahead" in drafts,
            costs=[member.cost for member in members],
            slope=SLOPE_CPU if on_cpu else SLOPE_GPU,
        )

    # ---- building

    @classmethod
    def load(
        cls,
        models: Sequence[ModelLike],
        *,
        weights: Sequence[float] | None = None,
        dtype: str | None = None,
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        quantization: str | None = None,
        **settings: Any,
    ) -> Ensemble:
        """Loads models by name or folder.

        Args:
            models: Names on a model hub, folders, mappings or `MemberConfig`, one or more.
            weights: One per model, above 0; default those of the configs (1 each).
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
        if isinstance(models, (str, Path, Mapping, MemberConfig)):
            raise ConfigError("models must be a list, for example ['model-a', 'model-b'], not a single one")
        members = [as_member(model) for model in models]
        if weights is not None:
            if len(weights) != len(members):
                raise ConfigError(f"{len(weights)} weights for {len(members)} members; give one each")
            members = [replace(member, weight=weight) for member, weight in zip(members, weights, strict=True)]
        placed: dict[str, Any] = {"device": device, "device_map": device_map}
        for index, member in enumerate(members):
            own = {} if member.device or member.device_map else {k: v for k, v in placed.items() if v is not None}
            own["dtype"] = dtype if dtype is not None and member.dtype == "auto" else member.dtype
            own["quantization"] = member.quantization or quantization
            members[index] = replace(member, **own)
        given = {key: value for key, value in settings.items() if value is not None}
        return cls.from_config(EnsembleConfig.from_dict({"members": members, **given}))

    @classmethod
    def from_config(cls, config: EnsembleConfig | str | Path) -> Ensemble:
        """Loads an ensemble from a configuration or a YAML file.

        Raises:
            ConfigError: A setting is wrong.
            ModelLoadError: A model cannot be loaded.
        """
        if not isinstance(config, EnsembleConfig):
            config = EnsembleConfig.from_yaml(config)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        members = [
            Member.load(
                member,
                f"cuda:{index % gpus}" if gpus else "cpu",
                cache_bytes=int(config.cache_gib * 2**30),
                prefill_tokens=config.prefill_tokens,
            )
            for index, member in enumerate(config.members)
        ]
        return cls(members, config)

    # ---- facts

    @property
    def names(self) -> list[str]:
        """The members' names, in order."""
        return self.config.names

    @property
    def gate(self) -> str:
        """The gate of thresholded mode: the one configured, or the first member."""
        return self.config.gate or self.names[0]

    @property
    def context(self) -> int | None:
        """The longest text that every member can read, in tokens; None where no member has a limit."""
        limits = [member.context for member in self._members if member.context is not None]
        return min(limits, default=None)

    @property
    def union_size(self) -> int:
        """Entries of the union vocabulary, the end of text included."""
        return len(self._union)

    @property
    def has_chat_templates(self) -> bool:
        """Whether every member can render a conversation."""
        return all(member.tokenizer.hf.chat_template for member in self._members)

    def encode(self, text: str) -> list[int]:
        """Returns a text in the gate's ids, without special tokens; for counting."""
        with self._encoding:
            return self._members[self.names.index(self.gate)].tokenizer.encode_rendered(text)

    # ---- asking

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> RequestOutput:
        """Answers one prompt.

        Args:
            prompt: A string, or a conversation: a list of `Message` or of mappings with ``role`` and ``content``.
            params: What is asked for; default `SamplingParams()`.
            **overrides: Single values in place of those of ``params``.

        Raises:
            RequestError: The prompt or an argument is wrong.
            MemberError: A member failed.
            EngineClosedError: The ensemble is closed.
        """
        return fold(self.stream(prompt, params, **overrides))

    def generate_batch(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, **overrides: Any
    ) -> list[RequestOutput]:
        """Answers several prompts at once, as one batch; arguments and errors as in `generate`."""
        streams = [self._events(self._request(prompt, params, overrides), eager=True) for prompt in prompts]
        return [fold(stream) for stream in streams]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Iterator[OutputChunk]:
        """Streams one answer; arguments and errors as in `generate`. Giving the iterator up frees the engine."""
        return self._events(self._request(prompt, params, overrides))

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> RequestOutput:
        """`generate` for event loops; cancelling it frees the engine."""
        return fold([chunk async for chunk in self.astream(prompt, params, **overrides)])

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any
    ) -> AsyncIterator[OutputChunk]:
        """`stream` for event loops; closing or cancelling it frees the engine."""
        request = await asyncio.to_thread(self._request, prompt, params, overrides)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def sink(event: Event) -> None:
            # A loop that was closed under us has nobody left to tell.
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._worker.submit(request, sink)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.output is not None:
                    return
        finally:
            self._worker.abort(request.request_id)

    def close(self) -> None:
        """Stops the engine; requests still running get an `EngineClosedError`. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- within

    def _events(self, request: Request, eager: bool = False) -> Iterator[OutputChunk]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        if eager:
            self._worker.submit(request, events.put, wait=True)

        def read() -> Iterator[OutputChunk]:
            # Submitted at the first read: an iterator nobody reads costs nothing.
            if not eager:
                self._worker.submit(request, events.put)
            try:
                while True:
                    event = events.get()
                    if isinstance(event, Exception):
                        raise event
                    yield event
                    if event.output is not None:
                        return
            finally:
                self._worker.abort(request.request_id)

        return read()

    def _request(self, prompt: Prompt, params: SamplingParams | None, overrides: Mapping[str, Any]) -> Request:
        params = (params or SamplingParams()).with_overrides(overrides)
        gate = params.gate or self.gate
        if gate not in self.names:
            raise RequestError(f"the gate {gate!r} is not a member; members are: {', '.join(self.names)}")
        if not isinstance(prompt, str) and (isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence)):
            raise RequestError(f"a prompt is a string or a list of messages, not a {type(prompt).__name__}")
        texts = []
        with self._encoding:
            for member in self._members:
                ids = encode_prompt(member.tokenizer, prompt)
                if member.context is not None and len(ids) > member.context:
                    raise PromptTooLongError(member.name, len(ids), member.context)
                texts.append(MemberText(ids))
        constraint = None if params.grammar is None else self._compiler.start(params.grammar)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return Request(
            request_id=uuid.uuid4().hex,
            params=params,
            texts=texts,
            gate=self.names.index(gate),
            threshold=self.config.threshold if params.threshold == "default" else params.threshold,
            sampler=Sampler(params, seed),
            seed=seed,
            names=self.names,
            constraint=constraint,
            written=bytearray(
                self._members[self.names.index(gate)].tokenizer.decode(texts[self.names.index(gate)].ids)
            ),
        )
