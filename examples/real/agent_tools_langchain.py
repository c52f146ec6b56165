"""An agent in LangChain with three tools: arithmetic, a table of prices, and units.

The questions are generated (`generated.py`); a quarter of them need two calls, one after the other.

Measured (docs/real-examples.md): no certain gain. With SmolLM2-135M-Instruct (weight 0), Qwen2.5-Coder-0.5B-Instruct
(2, gate, threshold 0.7) and Gemma-3-270M (1), 22 of 36 questions were answered, and 20 by Qwen alone, the best member:
+5.6 points (95%: -5.6 to +16.7). Of the 9 questions that need two
calls Qwen alone answered one, and no one else any.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import tool_questions
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from tools import TOOLS, states

from gac_core import Ensemble
from gac_langchain import ChatGaC

SYSTEM = "Use the tools to answer the question."
ANSWER = "Now give the answer in one sentence."
CALLS = 2


@wrap_model_call
def call_then_answer(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Requires a call in the first step; after `CALLS` results, withdraws the tools and asks for the answer.

    Models of half a billion parameters otherwise call tools for as long as they can.
    """
    results = sum(isinstance(message, ToolMessage) for message in request.messages)
    if results >= CALLS:
        return handler(request.override(tools=[], messages=[*request.messages, HumanMessage(ANSWER)]))
    request = request.override(model_settings={"parallel_tool_calls": False})
    return handler(request.override(tool_choice="any") if results == 0 else request)


def solve(chat: ChatGaC, task: Task) -> Solved:
    """Runs the agent; the score is whether its last message states the right number."""
    agent = create_agent(chat, TOOLS, system_prompt=SYSTEM, middleware=[call_then_answer])
    messages = agent.invoke({"messages": [("user", task.question)]})["messages"]
    answers = [message for message in messages if isinstance(message, AIMessage)]
    calls = [f"call: {call['name']}({call['args']})" for message in answers for call in message.tool_calls]
    statistics = [message.response_metadata["gac"] for message in answers]
    return Solved(messages[-1].text, states(messages[-1].text, task.answers[0]), statistics, calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated questions."""
    model = partial(ChatGaC, ensemble=ensemble, max_tokens=64)
    return Example(model, solve, tool_questions(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
