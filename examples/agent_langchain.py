"""An agent through LangChain: tools, and an answer of a given form.

The embedded models were trained to answer from passages, not to use tools: with them this shows the plumbing, in which
calls and answers are always valid and say little. Give ``--models`` of your own for an agent that thinks. Needs the
package langchain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from gac_langchain import ChatGaC

HERE = Path(__file__).parent
OPENED = {"Torno Bridge": 1874, "Halkus Museum": 1901}


@tool
def year_of(building: str) -> str:
    """Tells the year in which a building was opened."""
    return str(OPENED.get(building, "unknown"))


class Answer(BaseModel):
    """The answer to a question about a building."""

    building: str = Field(max_length=30)
    year: int = Field(ge=1000, le=2100)


def main() -> None:
    """Asks the agent once, and the model for one call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[str(HERE / "models" / n) for n in ("ash", "birch", "cedar")])
    parser.add_argument("--question", default="When was the Torno Bridge opened?")
    parser.add_argument("--threshold", type=float, default=0.5)
    args = parser.parse_args()
    chat = ChatGaC(models=args.models, max_tokens=120)
    call = chat.bind_tools([year_of], tool_choice="any", parallel_tool_calls=False).invoke(args.question)
    print("call:  ", call.tool_calls or call.invalid_tool_calls)
    agent = create_agent(chat, [year_of], response_format=ProviderStrategy(Answer))
    # An agent passes no arguments on to its model; the configuration reaches it.
    config = {"configurable": {"gac_threshold": args.threshold}, "recursion_limit": 10}
    state = agent.invoke({"messages": [("user", args.question)]}, config=config)
    print("answer:", state["structured_response"])
    print("steps ensembled:", f"{state['messages'][-1].response_metadata['gac']['share_ensembled']:.0%}")


if __name__ == "__main__":
    main()
