"""LlamaIndex integrations to compare that run models in this process: this project's, Hugging Face's, llama.cpp's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from llama_index.core.llms import LLM, ChatMessage
from transformers import AutoModelForCausalLM, AutoTokenizer

from gac_core import Ensemble, EnsembleConfig, Grammar, MemberConfig
from gac_core.model.member import Member

GGUF = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models") / "gguf" / "smollm2.gguf"
MODELS = Path(__file__).parent.parent / "examples" / "models"
SHORT, LONG = 24, 250
# Longer than the context window that integrations assume by default.
CONTEXT = 5000


class Counter:
    """Counts forwards, and makes them fail on request."""

    def __init__(self) -> None:
        self.forwards = self.tokens = self.rows = 0
        self.left: int | None = None
        self.fails = 0

    def count(self, tokens: int, rows: int = 1) -> None:
        """Counts one forward; raises if it shall fail."""
        self.forwards += 1
        self.tokens += tokens
        self.rows = max(self.rows, rows)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None if self.fails == 1 else self.left
                raise RuntimeError("out of luck")


class Counted(Counter):
    """A loaded model that counts its forwards and can be made to fail."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.model = AutoModelForCausalLM.from_pretrained(MODELS / name).eval()
        self.model.config.max_position_embeddings = self.tokenizer.model_max_length = CONTEXT
        self.model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.count(ids.shape[1], ids.shape[0])


class LocalRig:
    """Base of the rigs whose models run in this process."""

    remote = False
    # Further fields, with which a time limit applies to the first attempt.
    once: ClassVar[dict[str, Any]] = {}
    # How to ask for JSON: fields, and arguments of a call.
    json: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]] = []
    counted: Sequence[Counter]

    def work(self) -> int:
        """Forwards so far."""
        return sum(each.forwards for each in self.counted)

    def read(self) -> int:
        """Tokens read so far by the first model."""
        return self.counted[0].tokens

    def widest(self) -> int:
        """Returns the largest number of concurrent generations since the last call."""
        rows = max(each.rows for each in self.counted)
        for each in self.counted:
            each.rows = 0
        return rows

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Makes the models fail after some forwards."""
        for each in self.counted:
            each.left, each.fails = 6, 0
        try:
            yield
        finally:
            for each in self.counted:
                each.left = None

    @contextmanager
    def flaky(self) -> Iterator[None]:
        """Makes one forward of the first model fail."""
        self._settle()
        self.counted[0].left, self.counted[0].fails = 0, 1
        try:
            yield
        finally:
            self.counted[0].left = None

    def _settle(self) -> None:
        """Waits, for up to 30 s, until abandoned requests run no more."""
        for _ in range(100):
            before = self.work()
            time.sleep(0.3)
            if self.work() == before:
                return

    def templated(self) -> bool:
        """Returns whether a completion is what a chat with one message is."""
        llm = self.make()
        prompt = "In which town is the bridge?"
        return llm.complete(prompt).text == llm.chat([ChatMessage(prompt)]).message.content

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        raise NotImplementedError


class GaCRig(LocalRig):
    """Two embedded members."""

    name = "GaCLLM"
    harmless: ClassVar = {"seed": 1}
    roomy: ClassVar = {"temperature": 1.0, "seed": 0, "max_tokens": 200}
    json: ClassVar = [({}, {"grammar": Grammar.json_schema({"type": "object", "properties": {}})})]

    def __init__(self) -> None:
        self.counted = self.members = [Counted(name) for name in ("ash", "birch")]
        config = EnsembleConfig(tuple(MemberConfig(str(MODELS / name)) for name in ("ash", "birch")))
        members = [
            Member.from_model(each.model, each.tokenizer, name)
            for each, name in zip(self.members, config.names, strict=True)
        ]
        self.ensemble = Ensemble(members, config)
        # Models are freed with the last ensemble that uses them.
        self.kept: list[Any] = []

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from gac_llamaindex import GaCLLM

        talk = {"temperature": 5.0, "seed": 1, "max_tokens": LONG} if long else {"max_tokens": SHORT}
        return GaCLLM(ensemble=self.ensemble, **{**talk, **fields})

    def load(self) -> Any:
        """Constructs an LLM from a model's name; returns the object that holds the weights."""
        from gac_llamaindex import GaCLLM

        self.kept.append(GaCLLM([str(MODELS / "ash")]))
        return self.kept[-1].ensemble._members[0]


class HuggingFaceRig(LocalRig):
    """One embedded model."""

    name = "HuggingFaceLLM"
    harmless: ClassVar = {"seed": 1}
    roomy: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.counted = self._one = [Counted("ash")]

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.huggingface import HuggingFaceLLM

        (one,) = self._one
        talk = {"do_sample": True, "temperature": 5.0, "min_new_tokens": LONG} if long else {}
        return HuggingFaceLLM(
            model=one.model,
            tokenizer=one.tokenizer,
            is_chat_model=True,
            max_new_tokens=LONG if long else SHORT,
            generate_kwargs=talk,
            **fields,
        )

    def load(self) -> Any:
        """Constructs an LLM from a model's name; returns the object that holds the weights."""
        from llama_index.llms.huggingface import HuggingFaceLLM

        name = str(MODELS / "ash")
        return HuggingFaceLLM(model_name=name, tokenizer_name=name, context_window=CONTEXT)._model


class LlamaCPPRig(LocalRig):
    """SmolLM2 in GGUF."""

    name = "LlamaCPP"
    harmless: ClassVar = {"seed": 1}
    roomy: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.counted = [Counter()]

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.llama_cpp import LlamaCPP

        # The ids of both ends of text.
        talk: dict[str, Any] = {"logit_bias": {0: -100.0, 2: -100.0}, "seed": 1} if long else {}
        limit = LONG if long else SHORT
        llm = LlamaCPP(
            model_path=str(GGUF), max_new_tokens=limit, temperature=0, generate_kwargs=talk, verbose=False, **fields
        )
        inner = llm._model.eval

        def evaluate(tokens: Any) -> Any:
            self.counted[0].count(len(tokens))
            return inner(tokens)

        llm._model.eval = evaluate
        return llm

    def load(self) -> Any:
        """Constructs an LLM from a model's name; returns the object that holds the weights."""
        return self.make()._model._model
