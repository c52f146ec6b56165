"""Multi-agent hand-off in LangGraph: a reception that transfers each question to one of three specialists.

Every agent has tools: those of the reception transfer, each specialist has one of its own. The questions are generated
(`generated.py`).

Measured (docs/real-examples.md): no gain. With SmolLM2-135M-Instruct (weight 0), Qwen2.5-Coder-0.5B-Instruct (2, gate,
threshold 0.7) and Gemma-3-270M (1), 8 of 9 questions were answered, the same as by Qwen alone, the best member: +0.0
points (95%: +0.0 to +0.0).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from common import Example, Solved, Task, parser, run
from generated import handoff_questions
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from tools import SPECIALISTS, states

from gac_core import Ensemble
from gac_langchain import ChatGaC

RECEPTION = "Transfer the question to the specialist who can answer it."
SPECIALIST = "Use your tool to answer the question."
ANSWER = "Now give the answer in one sentence."


@wrap_model_call
def one_call(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Requires one call of the agent's own tools; after that withdraws them and asks for the answer."""
    own = {tool.name for tool in request.tools if isinstance(tool, BaseTool)}
    if any(isinstance(message, ToolMessage) and message.name in own for message in request.messages):
        return handler(request.override(tools=[], messages=[*request.messages, HumanMessage(ANSWER)]))
    return handler(request.override(tool_choice="any", model_settings={"parallel_tool_calls": False}))


def transfer_tool(name: str, subject: str) -> BaseTool:
    """Returns a tool that hands the conversation over to a specialist."""

    def transfer(runtime: ToolRuntime) -> Command[str]:
        done = ToolMessage("Transferred.", name=f"transfer_to_{name}", tool_call_id=runtime.tool_call_id)
        call = runtime.state["messages"][-1]
        return Command(goto=name, graph=Command.PARENT, update={"messages": [call, done]})

    return StructuredTool.from_function(
        transfer, name=f"transfer_to_{name}", description=f"Transfers the question to the specialist for {subject}."
    )


def build_graph(chat: ChatGaC) -> Any:
    """Returns the compiled graph: the reception, and a node for each specialist."""
    transfers = [transfer_tool(name, subject) for name, (subject, _) in SPECIALISTS.items()]
    graph = StateGraph(MessagesState)
    graph.add_node("reception", create_agent(chat, transfers, system_prompt=RECEPTION, middleware=[one_call]))
    for name, (_, tool) in SPECIALISTS.items():
        graph.add_node(name, create_agent(chat, [tool], system_prompt=SPECIALIST, middleware=[one_call]))
    graph.add_edge(START, "reception")
    return graph.compile()


def solve(chat: ChatGaC, task: Task) -> Solved:
    """Runs the graph; the score is whether the last message states the right number."""
    messages = build_graph(chat).invoke({"messages": [("user", task.question)]})["messages"]
    answers = [message for message in messages if isinstance(message, AIMessage)]
    calls = [f"call: {call['name']}({call['args']})" for message in answers for call in message.tool_calls]
    statistics = [message.response_metadata["gac"] for message in answers]
    return Solved(messages[-1].text, states(messages[-1].text, task.answers[0]), statistics, calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated questions."""
    model = partial(ChatGaC, ensemble=ensemble, max_tokens=64)
    return Example(model, solve, handoff_questions(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
