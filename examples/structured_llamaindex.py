"""Structured output in LlamaIndex: `structured_predict`, streamed, and as a structured LLM.

The schema is enforced, so that every object is valid. The embedded models are trained on sentences of a handbook only
and guess the fields; with ``--models`` of your own the values are meaningful.
"""

from __future__ import annotations

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field
from retrieval import arguments, read_documents
from transformers.utils import logging as transformers_logging

from gac_llamaindex import GaCLLM

PROMPT = PromptTemplate("Passages:\n\n{passage}\n\nQuestion: What does the passage say about the bridge?")


class Bridge(BaseModel):
    """Facts about a bridge."""

    material: Literal["steel", "stone", "iron", "copper", "brick", "bronze", "marble"]
    # Bounds keep values short, which small models might continue without end.
    metres: int = Field(ge=10, le=999)
    town: str = Field(max_length=16)


def main() -> None:
    """Extracts an object from the first passage in three ways."""
    args = arguments(__doc__ or "")
    transformers_logging.disable_progress_bar()
    settings = {"threshold": args.threshold, "max_tokens": args.max_tokens}
    llm = GaCLLM(args.models, weights=args.weights, dtype=args.dtype, **settings)
    passage = next(iter(read_documents(args.documents).values())).split("\n\n")[0]
    print("passage:", passage)
    print("object:", repr(llm.structured_predict(Bridge, PROMPT, passage=passage)))
    for partial in llm.stream_structured_predict(Bridge, PROMPT, passage=passage):
        print("so far:", repr(partial))
    question = ChatMessage(role="user", content=PROMPT.format(passage=passage))
    print("as JSON:", llm.as_structured_llm(Bridge).chat([question]).message.content)


if __name__ == "__main__":
    main()
