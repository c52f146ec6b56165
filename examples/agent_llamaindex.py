"""A LlamaIndex agent on an ensemble: a `FunctionAgent` that looks something up and answers from what it found.

The embedded models were trained to answer from passages, not to use tools. The first call is therefore required
(``initial_tool_choice``), a grammar keeps it valid, and the answers mean little. Give ``--models`` of your own, such as
instruction models of half a billion parameters, for an agent that finds the answer. After a look-up the tool is
withdrawn, so that the agent always ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool, FunctionTool
from llama_index.core.workflow import Context
from pydantic import create_model
from retrieval import arguments, read_documents
from transformers.utils import logging as transformers_logging

from gac_core import GaCError, use_threshold
from gac_llamaindex import GaCLLM

# Models of half a billion parameters call as long as they may.
LOOK_UPS = 1
MAX_STEPS = 4
SYSTEM = "Look the answer up in the handbook, then answer in one sentence."


class HandbookAgent(FunctionAgent):
    """An agent that answers after at most `LOOK_UPS` results: its tools are withdrawn then."""

    async def take_step(
        self, ctx: Context, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Asks the model for the next call or the answer."""
        scratchpad: list[ChatMessage] = await ctx.store.get(self.scratchpad_key, default=[])
        results = sum(message.role == MessageRole.TOOL for message in scratchpad)
        return await super().take_step(ctx, llm_input, tools if results < LOOK_UPS else [], memory)


def build_agent(llm: GaCLLM, texts: dict[str, str]) -> FunctionAgent:
    """Builds an agent that can look into the handbook; its first step is to do so."""
    chapters = tuple(sorted(texts))

    def look_up(chapter: str) -> str:
        return texts[chapter].split("\n\n")[0] + "\n\nAnswer the question from this passage."

    # Calls cannot name a chapter that is not there.
    schema = create_model("LookUp", chapter=(Literal[chapters], ...))
    described = "Reads the first lines of a chapter of the handbook."
    tool = FunctionTool.from_defaults(look_up, description=described, fn_schema=schema)
    # One call at a time: small models otherwise ask for all chapters at once.
    settings = {"initial_tool_choice": "look_up", "allow_parallel_tool_calls": False}
    return HandbookAgent(llm=llm, tools=[tool], system_prompt=SYSTEM, **settings)


async def ask(agent: FunctionAgent, question: str) -> None:
    """Runs the agent and prints what it does while it does it."""
    handler = agent.run(question, max_iterations=MAX_STEPS)
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"call: {event.tool_name}({event.tool_kwargs}) -> {str(event.tool_output)[:60]}...")
        elif isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
    print(f"\nanswer: {await handler}")


def main() -> None:
    """Asks the agent."""
    args = arguments(__doc__ or "")
    transformers_logging.disable_progress_bar()
    llm = GaCLLM(args.models, weights=args.weights, dtype=args.dtype, max_tokens=args.max_tokens)
    agent = build_agent(llm, read_documents(args.documents))
    # An agent passes no arguments on to its model; the threshold that is set around it reaches every step.
    with use_threshold(args.threshold):
        for question in args.question or ["In which town is the Delkus Bridge?"]:
            try:
                asyncio.run(ask(agent, question))
            except GaCError as error:
                raise SystemExit(f"the agent did not come to an answer: {error}") from error


if __name__ == "__main__":
    main()
