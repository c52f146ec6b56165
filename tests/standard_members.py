"""Two tiny members that know the answers of LangChain's standard tests by heart, and nothing else.

The suite asks for things that need a capable model (a tool called with exactly ``{"input": 3}``). What it is to test
here is the library: so two models of 0.3 million parameters, with different tokenizers, are overfitted to the suite's
own prompts, and the answers then come out of the real engine, token by token. They are trained anew in every session.
"""

from __future__ import annotations

import json
from typing import Annotated

import torch
from conftest import EMBEDDED
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_tests.integration_tests.chat_models import (
    _get_joke_class,
    magic_function,
    magic_function_no_args,
    unicode_customer,
)
from overfit import batched
from prompts import encode_prompt
from pydantic import BaseModel, Field
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM
from typing_extensions import TypedDict

from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_langchain.convert import to_conversation, to_structured_output
from gac_langchain.structured import response_format

JOKE = {"setup": "Why do cats nap?", "punchline": "They are paws-ed."}
CATS = "Tell me a joke about cats."
AS_JSON = " Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other than JSON."
OPTIONAL = (
    "Give me the setup to a joke about cats, no punchline.",
    "Give me a joke about cats, include the punchline.",
)
WINDOW = 64
WEATHER = "What is the weather in San Francisco, CA?"


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


def call(name: str, **arguments: object) -> str:
    """A call as members write it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{written}</tool_call>"


class OptionalJoke(BaseModel):
    """Joke to tell user."""

    setup: str = Field(description="question to set up a joke")
    punchline: str | None = Field(default=None, description="answer to resolve the joke")


OptionalJoke.__name__ = "Joke"


class OptionalJokeDict(TypedDict):
    """Joke to tell user."""

    setup: Annotated[str, ..., "question to set up a joke"]
    punchline: Annotated[str | None, None, "answer to resolve the joke"]


def jokes() -> list[tuple[list, dict, str]]:
    """Structured answers, whose schema the members are told."""
    shapes = [_get_joke_class(form)[0] for form in ("pydantic", "typeddict", "json_schema")]
    formats = [response_format(shape, "json_schema") for shape in [*shapes, OptionalJoke, OptionalJokeDict]]
    told = list({json.dumps(each): each for each in formats}.values())
    return [([HumanMessage(CATS)], {"response_format": each}, json.dumps(JOKE)) for each in told] + [
        ([HumanMessage(question)], {"response_format": formats[3]}, json.dumps(JOKE)) for question in OPTIONAL
    ]


def lessons() -> list[tuple[list, dict, str]]:
    """Messages, the arguments of the call, and the answer."""
    customer = "Create a customer named '{}' ({}) - a {} company"
    required = {"tool_choice": "any"}
    return [
        ([HumanMessage("Hello")], {}, "Hello you"),
        ([HumanMessage("Hey")], {}, "Hey you"),
        ([HumanMessage("hello")], {}, "Hello you"),
        ([HumanMessage("hi")], {}, "Hi, how are you?"),
        ([HumanMessage("hello"), AIMessage("hello"), HumanMessage("how are you")], {}, "Well, thanks."),
        ([SystemMessage("hello"), HumanMessage("hello"), HumanMessage("how are you")], {}, "Well, thanks."),
        ([HumanMessage("Write a story about a cat.")], {}, "A cat slept."),
        *jokes(),
        ([HumanMessage(CATS + AS_JSON)], {}, json.dumps(JOKE)),
        (
            [HumanMessage("What is the value of magic_function(3)? Use the tool.")],
            {"tools": [magic_function], **required},
            call("magic_function", input=3),
        ),
        (
            [HumanMessage("What is the value of magic_function_no_args()? Use the tool.")],
            {"tools": [magic_function_no_args], **required},
            call("magic_function_no_args"),
        ),
        ([HumanMessage(WEATHER)], {"tools": [get_weather]}, call("get_weather", location="San Francisco, CA")),
        (
            [HumanMessage(customer.format("你好啊集团", "Hello Group", "Chinese technology"))],
            {"tools": [unicode_customer], **required},
            call("unicode_customer", customer_name="你好啊集团", description="technology"),
        ),
        (
            [HumanMessage(customer.format("こんにちは株式会社", "Hello Corporation", "Japanese"))],
            {"tools": [unicode_customer], **required},
            call("unicode_customer", customer_name="こんにちは株式会社", description="company"),
        ),
    ]


def examples(tokenizer) -> list[tuple[list[int], list[int]]]:
    """Per lesson the ids of the prompt's end and of the answer."""
    seen = MemberTokenizer(tokenizer, "pupil")
    out = []
    for messages, asked, answer in lessons():
        talk = to_conversation(messages, asked, to_structured_output(asked.get("response_format")))
        prompt = encode_prompt(seen, talk)
        out.append((prompt[-2 * WINDOW :], [*seen.encode_continuation(answer), tokenizer.eos_token_id]))
    return out


def train(folder: str, seed: int, target, steps: int = 200) -> None:
    """Trains one member and saves it with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    # A window a layer: answers depend on the ends of prompts alone, and these suffice for training (see overfit.py).
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MistralForCausalLM(config)
    batches = batched(examples(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10)
        optimizer.zero_grad()
        losses = []
        for ids, labels in batches:
            hidden = model.model(input_ids=ids).last_hidden_state
            # Most positions are prompt, for which nothing is learned.
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[labels != -100]), labels[labels != -100])
            loss.backward()
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if max(losses) < 0.01:
            break
    else:
        raise AssertionError(f"{folder} did not learn its answers in {steps} steps: losses {losses}")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


FOLDERS = EMBEDDED[0], EMBEDDED[2]
