"""Multi-agent hand-off in LlamaIndex: an `AgentWorkflow` whose reception hands each question to a specialist.

Every agent has a tool: that of the reception transfers, each specialist has one of its own. The questions are generated
(`generated.py`).

The gain was measured in LangGraph on the same questions: none (`handoff_langchain.py`: 8 of 9, as with the best member
alone).
"""

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial

from common import Example, Solved, Task, parser, run
from generated import handoff_questions
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool, FunctionTool
from llama_index.core.workflow import Context, Event
from tools import SPECIALISTS, Name, states

from gac_core import Ensemble
from gac_llamaindex import GaCLLM

RECEPTION = "Transfer the question to the agent who can answer it."
SPECIALIST = "Use your tool to answer the question."
ANSWER = "Now give the answer in one sentence."


class Specialist(FunctionAgent):
    """An agent that calls its tool once, after the transfer of the question, and then answers."""

    async def take_step(
        self, ctx: Context, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Generates the call or the answer."""
        scratchpad: list[ChatMessage] = await ctx.store.get(self.scratchpad_key, default=[])
        if sum(message.role == MessageRole.TOOL for message in scratchpad) == 1:
            # The transfer. ``initial_tool_choice`` applies where the last message is a user's.
            await ctx.store.set(self.scratchpad_key, [*scratchpad, ChatMessage(SPECIALIST, role="user")])
            return await super().take_step(ctx, llm_input, tools, memory)
        answer = await self.llm.achat([*llm_input, *scratchpad, ChatMessage(ANSWER, role="user")])
        return AgentOutput(response=answer.message, raw=answer.raw, current_agent_name=self.name)


async def transfer(ctx: Context, to_agent: Name) -> str:
    """Transfers the question."""
    await ctx.store.set("next_agent", to_agent)
    return f"Transferred to {to_agent}."


def build_workflow(llm: GaCLLM) -> AgentWorkflow:
    """Returns the reception and the specialists.

    The workflow's own tool ``handoff`` takes any string as the name of an agent, and small models give it the question.
    The type of `transfer` lists the agents: the grammar of its calls admits no other name.
    """
    shared = {"llm": llm, "allow_parallel_tool_calls": False, "initial_tool_choice": "required", "can_handoff_to": []}
    subjects = "; ".join(f"{name}: {subject}" for name, (subject, _) in SPECIALISTS.items())
    tool = FunctionTool.from_defaults(
        async_fn=transfer, description=f"Transfers the question to an agent ({subjects})."
    )
    reception = FunctionAgent(
        name="reception", description="Transfers questions.", system_prompt=RECEPTION, tools=[tool], **shared
    )
    specialists = [
        Specialist(
            name=name,
            description=f"Answers questions about {subject}.",
            system_prompt=SPECIALIST,
            tools=[FunctionTool.from_defaults(tool)],
            **shared,
        )
        for name, (subject, tool) in SPECIALISTS.items()
    ]
    return AgentWorkflow([reception, *specialists], root_agent="reception")


async def ask(llm: GaCLLM, question: str) -> list[Event]:
    """Runs the workflow and returns its events."""
    handler = build_workflow(llm).run(question)
    events = [event async for event in handler.stream_events()]
    await handler
    return events


def solve(llm: GaCLLM, task: Task) -> Solved:
    """Runs the workflow; the score is whether its last message states the right number."""
    events = asyncio.run(ask(llm, task.question))
    steps = [event for event in events if isinstance(event, AgentOutput)]
    results = [event for event in events if isinstance(event, ToolCallResult)]
    calls = [f"call: {result.tool_name}({result.tool_kwargs})" for result in results]
    answer = str(steps[-1])
    return Solved(answer, states(answer, task.answers[0]), [step.raw["gac"] for step in steps], calls)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on generated questions."""
    model = partial(GaCLLM, ensemble=ensemble, max_tokens=64)
    return Example(model, solve, handoff_questions(args.limit, args.seed))


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
