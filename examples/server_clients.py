"""Asks a running server with the clients that other apps use: `openai`, `ChatOpenAI` and `OpenAILike`.

Start the server first::

    gac serve gac=examples/ensemble.yaml
    python examples/server_clients.py --model gac

A threshold and the other parameters that OpenAI's protocol lacks travel in ``extra_body``.
"""

from __future__ import annotations

import argparse
import os

from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI

QUESTION = (
    "The Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. It was built in 1874.\n\n"
    "Question: In which town is the Torno Bridge?"
)


def ask_openai(url: str, key: str, model: str, threshold: float | None) -> tuple[str, float]:
    """Returns a streamed answer and the share of its steps that combined all members."""
    text, share = "", 0.0
    with OpenAI(base_url=url, api_key=key) as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            extra_body={"threshold": threshold},
        )
        for chunk in stream:
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            if choice.finish_reason is not None:
                # The statistics of the answer, in its last chunk.
                share = (choice.model_extra or {})["gac"]["share_ensembled"]
    return text, share


def ask_langchain(url: str, key: str, model: str, threshold: float | None) -> tuple[str, dict[str, int]]:
    """Returns an answer and its token counts; LangChain's client drops fields that are not OpenAI's."""
    chat = ChatOpenAI(base_url=url, api_key=key, model=model, temperature=0, extra_body={"threshold": threshold})
    message = chat.invoke(QUESTION)
    return message.text, dict(message.usage_metadata or {})


def ask_llamaindex(url: str, key: str, model: str, threshold: float | None) -> tuple[str, float]:
    """Returns an answer and the share of its steps that combined all members."""
    llm = OpenAILike(
        api_base=url,
        api_key=key,
        model=model,
        temperature=0,
        is_chat_model=True,
        is_function_calling_model=True,
        additional_kwargs={"extra_body": {"threshold": threshold}},
    )
    response = llm.chat([ChatMessage(QUESTION)])
    return response.message.content or "", response.raw.choices[0].model_extra["gac"]["share_ensembled"]


def main() -> None:
    """Asks one question with every client, at two thresholds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="address of the server")
    parser.add_argument("--model", default="ensemble", help="id of a model; /v1/models lists them")
    given = parser.parse_args()
    key = os.environ.get("GAC_API_KEY", "none")
    for threshold in (None, 0.5):
        print(f"threshold {threshold}")
        text, share = ask_openai(given.url, key, given.model, threshold)
        print(f"  openai: {text!r}, {share:.0%} of the steps ensembled")
        text, usage = ask_langchain(given.url, key, given.model, threshold)
        print(f"  ChatOpenAI: {text!r}, {usage['output_tokens']} tokens")
        text, share = ask_llamaindex(given.url, key, given.model, threshold)
        print(f"  OpenAILike: {text!r}, {share:.0%} of the steps ensembled")


if __name__ == "__main__":
    main()
