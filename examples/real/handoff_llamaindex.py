"""Multi-agent hand-off in LlamaIndex: an `AgentWorkflow` whose reception hands each question to a specialist.

Each of the three specialists has one tool; the reception has LlamaIndex's ``handoff``. The questions are generated
(`generated.py`).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import handoff_questions
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, FunctionAgent
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool, FunctionTool
from llama_index.core.workflow import Context
from tools import SPECIALISTS, states

from gac_core import Ensemble
from gac_llamaindex import GaCLLM

RECEPTION = "Hand the question off to the agent who can answer it."
SPECIALIST = "Use your tool to answer the question. Then give the answer in one sentence."


class OneCall(FunctionAgent):
    """An agent whose tools are withdrawn once one of them has returned."""

    async def take_step(
        self, ctx: Context, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Generates the call or the answer."""
        own = {tool.metadata.name for tool in tools}
        scratchpad: list[ChatMessage] = await ctx.store.get(self.scratchpad_key, default=[])
        called = any(
            message.role == MessageRole.TOOL and message.additional_kwargs.get("name") in own for message in scratchpad
        )
        return await super().take_step(ctx, llm_input, [] if called else tools, memory)


def build_workflow(llm: GaCLLM) -> AgentWorkflow:
    """Returns the reception and the specialists."""
    shared = {"llm": llm, "allow_parallel_tool_calls": False, "initial_tool_choice": "required"}
    reception = FunctionAgent(
        name="reception",
        description="Hands questions off.",
        system_prompt=RECEPTION,
        can_handoff_to=list(SPECIALISTS),
        **shared,
    )
    specialists = [
        OneCall(
            name=name,
            description=f"Answers questions about {subject}.",
            system_prompt=SPECIALIST,
            tools=[FunctionTool.from_defaults(tool)],
            can_handoff_to=[],
            **shared,
        )
        for name, (subject, tool) in SPECIALISTS.items()
    ]
    return AgentWorkflow([reception, *specialists], root_agent="reception")


async def ask(llm: GaCLLM, question: str) -> list[AgentOutput]:
    """Runs the workflow and returns the steps of its agents."""
    handler = build_workflow(llm).run(question, max_iterations=8)
    steps = [event async for event in handler.stream_events() if isinstance(event, AgentOutput)]
    await handler
    return steps


def solve(llm: GaCLLM, task: Task) -> Solved:
    """Runs the workflow; the score is whether its last message states the right number."""
    steps = asyncio.run(ask(llm, task.question))
    calls = [
        f"{step.current_agent_name}: {call.tool_name}({call.tool_kwargs})" for step in steps for call in step.tool_calls
    ]
    answer = str(steps[-1])
    return Solved(answer, states(answer, task.answers[0]), [step.raw["gac"] for step in steps], calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated questions."""
    model = partial(GaCLLM, ensemble=ensemble, max_tokens=64)
    return Example(model, solve, handoff_questions(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
