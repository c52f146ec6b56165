"""What tests of LlamaIndex on real models share: an ensemble, recorded requests, documents and an index of MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from conftest import REAL
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from gac_core import Ensemble

TEXTS = {
    "bridge": "The Torno Bridge stands in Halkus. It was built in 1874 by Melka Dorin.",
    "inn": "The Silver Inn stands in Marwin. Its keeper is Rufo Tann.",
}
QUESTION = "Who built the Torno Bridge?"
NODES = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in TEXTS.values()]


@cache
def embedding() -> HuggingFaceEmbedding:
    """MiniLM."""
    return HuggingFaceEmbedding(model_name=str(REAL / "minilm"), device="cpu")


@cache
def vector_index() -> VectorStoreIndex:
    """An index of both texts; not to be changed."""
    documents = [Document(text=text, metadata={"source": name}) for name, text in TEXTS.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=embedding())


@dataclass
class Requests:
    """The requests of an ensemble: prompts and parameters."""

    ensemble: Ensemble
    seen: list[tuple[Any, Any]] = field(default_factory=list)

    def take(self) -> list[tuple[Any, Any]]:
        """Returns the requests since the last call."""
        taken, self.seen[:] = list(self.seen), []
        return taken

    def answers(self, last: int = 0) -> list[str]:
        """Returns what the ensemble itself generates for the requests since the last call; of all or the last."""
        texts = [self.ensemble.generate(prompt, params).text for prompt, params in self.take()[-last:]]
        self.seen.clear()
        return texts


@contextmanager
def recorded(ensemble: Ensemble) -> Iterator[Requests]:
    """Records the requests of an ensemble, except those of `Requests.answers`."""
    requests, inner = Requests(ensemble), ensemble._input_processor.request

    def request(prompt, params, overrides, *rest):
        requests.seen.append((prompt, params))
        return inner(prompt, params, overrides, *rest)

    ensemble._input_processor.request = request
    try:
        yield requests
    finally:
        del ensemble._input_processor.request


@pytest.fixture(scope="module")
def both(real):
    """Qwen and SmolLM2; a text in bfloat16 depends on what else is computed, unless each request is alone."""
    with real.ensemble("qwen", "smollm2", dtype="bfloat16", deterministic=True) as loaded:
        yield loaded


@pytest.fixture
def asked(both):
    """The requests of `both`."""
    with recorded(both) as requests:
        yield requests
