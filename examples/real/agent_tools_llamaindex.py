"""An agent in LlamaIndex with three tools: arithmetic, a table of prices, and units.

The questions are generated (`generated.py`); a quarter of them need two calls, one after the other.

The gain was measured in LangChain on the same questions: not certain (`agent_tools_langchain.py`: 22 of 36 against 20
of 36 of the best member).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import tool_questions
from llama_index.core.agent.workflow import AgentOutput, FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool, FunctionTool
from llama_index.core.workflow import Context, Event
from tools import TOOLS, states

from gac_core import Ensemble
from gac_llamaindex import GaCLLM

SYSTEM = "Use the tools to answer the question."
ANSWER = "Now give the answer in one sentence."
CALLS = 2


class CallThenAnswer(FunctionAgent):
    """An agent that, after `CALLS` results, loses its tools and is asked for the answer.

    Models of half a billion parameters otherwise call tools for as long as they can.
    """

    async def take_step(
        self, ctx: Context, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Generates the next call or the answer."""
        scratchpad: list[ChatMessage] = await ctx.store.get(self.scratchpad_key, default=[])
        if sum(message.role == MessageRole.TOOL for message in scratchpad) < CALLS:
            return await super().take_step(ctx, llm_input, tools, memory)
        answer = await self.llm.achat([*llm_input, *scratchpad, ChatMessage(ANSWER, role="user")])
        return AgentOutput(response=answer.message, raw=answer.raw, current_agent_name=self.name)


async def ask(llm: GaCLLM, question: str) -> list[Event]:
    """Runs the agent and returns its events."""
    agent = CallThenAnswer(
        llm=llm,
        tools=[FunctionTool.from_defaults(tool) for tool in TOOLS],
        system_prompt=SYSTEM,
        initial_tool_choice="required",
        allow_parallel_tool_calls=False,
    )
    handler = agent.run(question)
    events = [event async for event in handler.stream_events()]
    await handler
    return events


def solve(llm: GaCLLM, task: Task) -> Solved:
    """Runs the agent; the score is whether its last message states the right number."""
    events = asyncio.run(ask(llm, task.question))
    steps = [event for event in events if isinstance(event, AgentOutput)]
    results = [event for event in events if isinstance(event, ToolCallResult)]
    calls = [f"call: {result.tool_name}({result.tool_kwargs})" for result in results]
    answer = str(steps[-1])
    return Solved(answer, states(answer, task.answers[0]), [step.raw["gac"] for step in steps], calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated questions."""
    model = partial(GaCLLM, ensemble=ensemble, max_tokens=64)
    return Example(model, solve, tool_questions(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
