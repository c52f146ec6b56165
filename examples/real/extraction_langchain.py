"""Structured extraction in LangChain: short texts about invoices into a pydantic schema.

A grammar enforces the schema token by token, so that every answer is a valid invoice; the score is the share of its
values that are right. The texts are generated (`generated.py`).

Measured (docs/real-examples.md): no gain. With SmolLM2-135M-Instruct (weight 1), Qwen2.5-Coder-0.5B-Instruct (4, gate,
threshold 0.7) and Gemma-3-270M (2), 17 texts, 88.2% of the values were right, as with Qwen alone, the best member: +0.0
points (95%: +0.0 to +0.0). Qwen was certain of 98% of the steps.
"""

from __future__ import annotations

import argparse
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import invoices
from invoice import EXAMPLE, EXAMPLE_TEXT, Invoice, right_values
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate

from gac_core import Ensemble
from gac_langchain import ChatGaC

PROMPT = ChatPromptTemplate(
    [
        ("system", "Extract the invoice from the text."),
        ("human", EXAMPLE_TEXT),
        AIMessage(EXAMPLE.model_dump_json()),
        ("human", "{text}"),
    ]
)


def solve(chat: ChatGaC, task: Task) -> Solved:
    """Reads one text; the score is the share of the seven values that are right."""
    chain = PROMPT | chat.with_structured_output(Invoice, include_raw=True)
    answer = chain.invoke({"text": task.question})
    if answer["parsing_error"] is not None:
        raise answer["parsing_error"]
    score = right_values(answer["parsed"], task.known)
    return Solved(str(answer["parsed"]), score, [answer["raw"].response_metadata["gac"]])


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated texts."""
    model = partial(ChatGaC, ensemble=ensemble, max_tokens=120)
    return Example(model, solve, invoices(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(1, 4, 2), threshold=0.7).parse_args(), build)
