"""A LlamaIndex chat engine: retrieval at every turn, memory over turns, streamed answers.

The memory counts tokens of the gate. Runs on the embedded models, which are trained on single questions and make little
use of earlier turns; use ``--models`` of your own for conversations.
"""

from __future__ import annotations

from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from rag_llamaindex import build_engine
from retrieval import SYSTEM, arguments, questions, read_documents
from transformers.utils import logging as transformers_logging

from gac_llamaindex import GaCLLM


def build_chat(llm: GaCLLM, texts: dict[str, str], passages: int) -> ContextChatEngine:
    """Builds a chat engine over texts by file name; its memory holds half of what the members can read."""
    return ContextChatEngine.from_defaults(
        retriever=build_engine(llm, texts, passages).retriever,
        llm=llm,
        memory=ChatMemoryBuffer.from_defaults(token_limit=llm.metadata.context_window // 2, tokenizer_fn=llm.encode),
        system_prompt="",
        context_template=SYSTEM + "\n\nPassages:\n\n{context_str}\n",
    )


def main() -> None:
    """Asks every question in one conversation."""
    args = arguments(__doc__ or "")
    transformers_logging.disable_progress_bar()
    settings = {"threshold": args.threshold, "max_tokens": args.max_tokens}
    llm = GaCLLM(args.models, weights=args.weights, dtype=args.dtype, **settings)
    chat = build_chat(llm, read_documents(args.documents), args.passages)
    for question in questions(args.question, args.documents):
        print(f"Q: {question.text}\n   ", end="")
        response = chat.stream_chat(question.text)
        for piece in response.response_gen:
            print(piece, end="", flush=True)
        print(f"   (passages from: {', '.join(sorted({n.metadata['source'] for n in response.source_nodes}))})")
    print(f"messages remembered: {len(chat.chat_history)}")


if __name__ == "__main__":
    main()
