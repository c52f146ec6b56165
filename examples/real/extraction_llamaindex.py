"""Structured extraction in LlamaIndex: the invoices of `extraction_langchain.py` with ``structured_predict``.

A grammar enforces the schema token by token. The texts are generated (`generated.py`).

The gain was measured in LangChain on the same texts: none (`extraction_langchain.py`: +0.0 points, 17 texts).
LlamaIndex puts the schema into the user's message and not into the system's, so that the answers differ.
"""

from __future__ import annotations

import argparse
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import invoices
from invoice import EXAMPLE, EXAMPLE_TEXT, Invoice, right_values
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from recording import recorded

from gac_core import Ensemble
from gac_llamaindex import GaCLLM

PROMPT = ChatPromptTemplate(
    [
        ChatMessage("Extract the invoice from the text.", role="system"),
        ChatMessage(EXAMPLE_TEXT, role="user"),
        ChatMessage("{example}", role="assistant"),
        ChatMessage("{text}", role="user"),
    ]
)


def solve(llm: GaCLLM, task: Task) -> Solved:
    """Reads one text; the score is the share of the seven values that are right."""
    with recorded() as calls:
        found = llm.structured_predict(Invoice, PROMPT, example=EXAMPLE.model_dump_json(), text=task.question)
    return Solved(str(found), right_values(found, task.known), calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated texts."""
    model = partial(GaCLLM, ensemble=ensemble, max_tokens=120)
    return Example(model, solve, invoices(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(1, 4, 2), threshold=0.7).parse_args(), build)
