"""An agent in LlamaIndex: a `FunctionAgent` that looks a chapter up and answers from it.

The embedded models are trained to answer from passages, not to use tools. The first call is therefore required
(``initial_tool_choice``) and a grammar keeps it valid, but the answers mean little. With ``--models`` such as
instruction models of half a billion parameters, the agent finds the answer. After one look-up the tool is removed, so
that the agent always ends.
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

# Models of half a billion parameters call the tool for as long as it is available.
LOOK_UPS = 1
MAX_STEPS = 4
SYSTEM = "Look the answer up in the handbook, then answer in one sentence."


class HandbookAgent(FunctionAgent):
    """An agent whose tools are removed after `LOOK_UPS` results."""

    async def take_step(
        self, ctx: Context, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Generates the next call or the answer."""
        scratchpad: list[ChatMessage] = await ctx.store.get(self.scratchpad_key, default=[])
        results = sum(message.role == MessageRole.TOOL for message in scratchpad)
        return await super().take_step(ctx, llm_input, tools if results < LOOK_UPS else [], memory)


def build_agent(llm: GaCLLM, texts: dict[str, str]) -> FunctionAgent:
    """Builds an agent whose first step is to look up a chapter of the handbook."""
    chapters = tuple(sorted(texts))

    def look_up(chapter: str) -> str:
        return texts[chapter].split("\n\n")[0] + "\n\nAnswer the question from this passage."

    # The schema restricts calls to existing chapters.
    schema = create_model("LookUp", chapter=(Literal[chapters], ...))
    described = "Reads the first lines of a chapter of the handbook."
    tool = FunctionTool.from_defaults(look_up, description=described, fn_schema=schema)
    # One call at a time: small models otherwise request all chapters at once.
    settings = {"initial_tool_choice": "look_up", "allow_parallel_tool_calls": False}
    return HandbookAgent(llm=llm, tools=[tool], system_prompt=SYSTEM, **settings)


async def ask(agent: FunctionAgent, question: str) -> None:
    """Runs the agent and prints its steps as they happen."""
    handler = agent.run(question, max_iterations=MAX_STEPS)
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"call: {event.tool_name}({event.tool_kwargs}) -> {str(event.tool_output)[:60]}...")
        elif isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
    print(f"\nanswer: {await handler}")


def main() -> None:
    """Runs the agent on every question."""
    args = arguments(__doc__ or "")
    transformers_logging.disable_progress_bar()
    llm = GaCLLM(args.models, weights=args.weights, dtype=args.dtype, max_tokens=args.max_tokens)
    agent = build_agent(llm, read_documents(args.documents))
    # An agent passes no arguments on to its model, but `use_threshold` applies to every step.
    with use_threshold(args.threshold):
        for question in args.question or ["In which town is the Delkus Bridge?"]:
            try:
                asyncio.run(ask(agent, question))
            except GaCError as error:
                raise SystemExit(f"the agent did not come to an answer: {error}") from error


if __name__ == "__main__":
    main()
