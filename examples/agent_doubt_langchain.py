"""An agent in LangChain that retrieves again, or abstains, where its members disagree.

The agent looks a question up in one page of a handbook: a tool call, whose page the members choose together, token by
token. The metadata of each answer tell how far they agreed on it (``tool_call_doubts`` and ``doubt``). Where they agree
on less than ``--least`` of the tokens, the agent does not follow the call: it searches all pages with the question and
asks again. If the members then disagree on the answer, it says so instead of answering.

The embedded models are trained to answer from passages, not to use tools: they disagree on most calls, and answer from
what was retrieved again. ``--models`` takes folders or hub names of others.

How well agreement tells right calls from wrong ones depends on the models. Measured on the questions of
`examples/real/agent_tools_langchain.py` (SmolLM2-135M, Qwen2.5-Coder-0.5B, Gemma-3-270M with weights 1, 4, 1; 36
questions, 25 valid calls): the 5 wrong calls had an agreement of 70 to 72%, and 14 of the 20 right ones more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from retrieval import SYSTEM, Bm25, arguments, questions, read_documents
from rich.console import Console
from transformers.utils import logging as transformers_logging

from gac_langchain import ChatGaC

Page = Literal["bridges", "festivals", "inns", "museums", "people"]
ABSTAINS = "I do not know: the models disagree."


def agreement(message: AIMessage) -> float:
    """Returns how far the members agreed on a message: on its tool calls, or on its text if it calls no tool."""
    known = message.response_metadata
    doubts = known.get("tool_call_doubts", {}).values() if message.tool_calls else [known.get("doubt", {})]
    # Tokens that a grammar forces are no matter of agreement.
    return min((each["agreement"] for each in doubts if each.get("agreement") is not None), default=1.0)


class RetrieveAgain(AgentMiddleware):
    """Retrieves again where the members disagree on a call or an answer, and abstains if they still do.

    Args:
        passages: All passages.
        count: How many to retrieve.
        least: Share of the tokens on which members must agree, 0 to 1.
        report: Gets a line about each message on which they do not.
    """

    def __init__(self, passages: list[str], count: int, least: float, report: Callable[[str], None]) -> None:
        super().__init__()
        self._passages, self._index, self._count = passages, Bm25(passages), count
        self._least, self._report = least, report

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse | AIMessage:
        """Requires a call in the first step and an answer in the second, and checks how far members agree on them."""
        if isinstance(request.messages[-1], ToolMessage):
            request = request.override(tools=[])
        else:
            request = request.override(tool_choice="any", model_settings={"parallel_tool_calls": False})
        response = handler(request)
        if self._is_sure(response):
            return response
        question = request.messages[0].text
        found = "\n\n".join(self._passages[index] for index in self._index.search(question, self._count))
        asked = HumanMessage(f"Passages:\n\n{found}\n\nQuestion: {question}")
        response = handler(request.override(messages=[asked], tools=[], tool_choice=None, model_settings={}))
        return response if self._is_sure(response) else AIMessage(ABSTAINS)

    def _is_sure(self, response: ModelResponse) -> bool:
        message = response.result[-1]
        sure = agreement(message)
        if sure < self._least:
            said = [f"{call['name']}({call['args']})" for call in message.tool_calls] or [message.text]
            self._report(f"   the members agree on {sure:.0%} of: {', '.join(said)}")
        return sure >= self._least


def main() -> None:
    """Asks every question and prints calls, how far the members agreed on them, and answers."""
    args = arguments(__doc__ or "", threshold=None, least=0.8)
    console = Console(highlight=False)
    transformers_logging.disable_progress_bar()
    pages = read_documents(args.documents)
    indices = {name: Bm25(text.split("\n\n")) for name, text in pages.items()}

    @tool
    def look_up(page: Page, question: str) -> str:
        """Returns the passages of a page of the handbook that fit a question best."""
        passages = pages[f"{page}.md"].split("\n\n")
        return "\n\n".join(passages[index] for index in indices[f"{page}.md"].search(question, args.passages))

    chat = ChatGaC(models=args.models, weights=args.weights, dtype=args.dtype, max_tokens=args.max_tokens)
    passages = [passage for text in pages.values() for passage in text.split("\n\n")]
    again = RetrieveAgain(passages, args.passages, args.least, partial(console.print, style="dim", markup=False))
    agent = create_agent(chat, [look_up], system_prompt=SYSTEM, middleware=[again])
    for question in questions(args.question, args.documents):
        console.print(f"[bold]Q: {question.text}[/bold]")
        for message in agent.invoke({"messages": [("user", question.text)]})["messages"][1:]:
            sure = f" (agreement {agreement(message):.0%})" if "doubt" in message.response_metadata else ""
            for call in getattr(message, "tool_calls", []):
                console.print(f"   call: {call['name']}({call['args']}){sure}", markup=False)
            if isinstance(message, AIMessage) and not message.tool_calls:
                console.print(f"   answer: {message.text}{sure}", markup=False)
        if question.answer is not None:
            console.print(f"   expected: {question.answer}\n", style="dim")


if __name__ == "__main__":
    main()
