"""An agent in LangChain with a tool and a structured answer.

The embedded models are trained to answer from passages, not to use tools. The first step is therefore required to be a
call, and grammars keep calls and answers valid, but the answers mean little. With ``--models`` such as instruction
models of half a billion parameters, the agent finds the answer. After two calls the tool is removed, so that the agent
always ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.errors import GraphRecursionError
from pydantic import BaseModel, Field
from transformers.utils import logging as transformers_logging

from gac_core import GaCError
from gac_langchain import ChatGaC

HERE = Path(__file__).parent
LOOK_UPS = 2
# The type restricts calls to existing buildings.
Building = Literal["Torno Bridge", "Halkus Museum"]
OPENED: dict[Building, int] = {"Torno Bridge": 1874, "Halkus Museum": 1901}


@tool
def year_of(building: Building) -> str:
    """Returns the year in which a building was opened."""
    return str(OPENED[building])


class Answer(BaseModel):
    """The answer to a question about a building."""

    building: Building
    year: int = Field(ge=1000, le=2100)


@wrap_model_call
def look_up_then_answer(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Requires a call in the first step, and an answer after `LOOK_UPS` calls."""
    if isinstance(request.messages[-1], HumanMessage):
        settings = {"parallel_tool_calls": False}
        request = request.override(tool_choice="any", response_format=None, model_settings=settings)
    elif sum(isinstance(message, ToolMessage) for message in request.messages) >= LOOK_UPS:
        request = request.override(tools=[])
    return handler(request)


def main() -> None:
    """Asks the agent and prints its steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[str(HERE / "models" / n) for n in ("ash", "birch", "cedar")])
    parser.add_argument("--weights", nargs="+", type=float, help="one per model (default: 1 each)")
    parser.add_argument("--dtype", default=None, help="such as bfloat16 (default: as stored)")
    parser.add_argument("--question", default="When was the Torno Bridge opened?")
    parser.add_argument("--threshold", type=float, default=0.5)
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    chat = ChatGaC(models=args.models, weights=args.weights, dtype=args.dtype, max_tokens=120)
    agent = create_agent(chat, [year_of], response_format=ProviderStrategy(Answer), middleware=[look_up_then_answer])
    # An agent passes no arguments on to its model, but the run configuration reaches it.
    config = {"configurable": {"gac_threshold": args.threshold}, "recursion_limit": 10}
    try:
        state = agent.invoke({"messages": [("user", args.question)]}, config=config)
    except (GaCError, GraphRecursionError, StructuredOutputError) as error:
        raise SystemExit(f"the agent did not come to an answer: {error}") from error
    for message in state["messages"]:
        message.pretty_print()
    if "structured_response" not in state:
        raise SystemExit("the agent did not come to an answer: its last message calls no tool and has no answer")
    print("\nanswer:", state["structured_response"])
    print("steps ensembled:", f"{state['messages'][-1].response_metadata['gac']['share_ensembled']:.0%}")


if __name__ == "__main__":
    main()
