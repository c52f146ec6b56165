"""Objects instead of text through LlamaIndex: `structured_predict`, streamed and as a structured LLM.

The schema is enforced, so that every object is valid whatever the models know. The embedded ones know sentences of the
handbook only: they fill the fields by guesswork. Give ``--models`` of your own for objects that are right.
"""

from __future__ import annotations

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field
from retrieval import arguments, read_documents
from transformers.utils import logging as transformers_logging

from gac_llamaindex import GaCLLM

PROMPT = PromptTemplate("Passages:\n\n{passage}\n\nQuestion: What is told of the bridge?")


class Bridge(BaseModel):
    """What a passage tells of a bridge."""

    material: Literal["steel", "stone", "iron", "copper", "brick", "bronze", "marble"]
    # Bounds keep short what models that lose their way would write for ever.
    metres: int = Field(ge=10, le=999)
    town: str = Field(max_length=16)


def main() -> None:
    """Reads an object from the first passage in three ways."""
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
