"""Log-probabilities by chunk, several answers to one prompt, and penalties, with LangChain's models."""

from __future__ import annotations

from typing import Literal

import pytest
from conftest import QUESTION, ensemble_of, random_pair
from langchain_core.messages import ChatMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool

from gac_core import FinishReason, RequestError, RequestOutput, RequestStats, Usage
from gac_langchain import ChatGaC, GaCLLM
from gac_langchain.answers import to_message

ASK = QUESTION[1]["content"]
MESSAGES = [SystemMessage(QUESTION[0]["content"]), HumanMessage(ASK)]
HOT = {"temperature": 3.0, "seed": 5, "max_tokens": 8}


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=200)


@tool
def now(zone: Literal["utc", "cet"]) -> str:
    """Tells the time."""
    return "noon"


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def assert_same(found, want):
    """Equal up to rounding, where requests share a batch or a prefix."""
    assert [entry["token"] for entry in found["content"]] == [entry["token"] for entry in want["content"]]
    values = [entry["logprob"] for entry in want["content"]]
    assert [entry["logprob"] for entry in found["content"]] == pytest.approx(values, abs=1e-4)


def test_log_probabilities_as_openai_asks_for_them(ensemble, chat):
    want = chat.invoke(ASK, logprobs=3, max_tokens=4).response_metadata["logprobs"]
    given = {"logprobs": True, "top_logprobs": 3}
    own = ChatGaC(ensemble=ensemble, max_tokens=4, **given)
    assert own.logprobs == 3
    for message in (
        chat.bind(**given).invoke(ASK, max_tokens=4),
        chat.invoke(ASK, top_logprobs=3, max_tokens=4),
        own.invoke(ASK),
    ):
        found = message.response_metadata["logprobs"]
        assert_same(found, want)
        assert len(found["content"][0]["top_logprobs"]) == 3
    for contrary in (False, 2, 1):
        with pytest.raises(RequestError, match="top_logprobs=3 contradicts logprobs"):
            chat.invoke(ASK, logprobs=contrary, top_logprobs=3)
    with pytest.raises(RequestError, match="logprobs"):
        chat.invoke(ASK, top_logprobs=101)


@pytest.mark.parametrize("asked", [{"stop": ["t"]}, {"tools": [now], "tool_choice": "any"}])
async def test_each_chunk_of_a_stream_has_the_log_probabilities_of_its_tokens(chat, asked):
    asked = {**asked, "logprobs": 2, "max_tokens": 80, "parallel_tool_calls": False}
    want = chat.invoke(ASK, **asked)
    chunks = list(chat.stream(ASK, **asked))
    having = [chunk for chunk in chunks if "logprobs" in chunk.response_metadata]
    assert len(having) > 1
    for chunk in having[:-1]:
        assert 1 <= len(chunk.response_metadata["logprobs"]["content"]) < 4
    streamed = [sum_of(chunks)]
    chunks = [chunk async for chunk in chat.astream(ASK, **asked)]
    streamed.append(sum_of(chunks))
    for whole in streamed:
        assert_same(whole.response_metadata["logprobs"], want.response_metadata["logprobs"])
        assert whole.response_metadata.keys() == want.response_metadata.keys()
        assert (whole.text, len(whole.tool_calls)) == (want.text, len(want.tool_calls))


async def test_event_streams_of_answers_with_log_probabilities(chat):
    asked = {"logprobs": 2, "max_tokens": 8}
    want = chat.invoke(ASK, **asked).response_metadata["logprobs"]
    events = [event async for event in chat.astream_events(ASK, version="v2", **asked)]
    assert_same(events[-1]["data"]["output"].response_metadata["logprobs"], want)


def test_streams_of_texts_have_the_log_probabilities_of_each_piece(ensemble):
    llm = GaCLLM(ensemble=ensemble, logprobs=2, streaming=True, **HOT)
    want = llm.generate(["In which"]).generations[0][0]
    chunks = list(llm._stream("In which"))
    whole = sum_of(chunks)
    assert len([chunk for chunk in chunks if "logprobs" in (chunk.generation_info or {})]) > 1
    assert_same(whole.generation_info["logprobs"], want.generation_info["logprobs"])
    assert whole.text == want.text


def test_tokens_of_reasoning_are_counted():
    counted = Usage(4, 7, reasoning_tokens=5)
    done = RequestOutput("", "Yes", (), FinishReason.STOP, None, counted, RequestStats(), None, None, reasoning="so")
    counts = to_message(done, "m").usage_metadata
    assert (counts["output_tokens"], counts["output_token_details"]) == (7, {"reasoning": 5})


def test_the_developer_role_is_the_system_role(chat):
    want = chat.invoke([SystemMessage("Be brief."), HumanMessage(ASK)], max_tokens=4)
    message = chat.invoke([ChatMessage("Be brief.", role="developer"), HumanMessage(ASK)], max_tokens=4)
    assert message.usage_metadata["input_tokens"] == want.usage_metadata["input_tokens"]
    assert message.content == want.content


# ---- several answers


async def test_several_answers_to_a_conversation(ensemble, chat):
    want = ensemble.generate_choices(QUESTION, n=3, **HOT)
    result = chat.generate([MESSAGES, MESSAGES], n=3, **HOT)
    for generations in [*result.generations, (await chat.agenerate([MESSAGES], n=3, **HOT)).generations[0]]:
        assert [g.text for g in generations] == [output.text for output in want]
        counts = [g.message.usage_metadata["output_tokens"] for g in generations]
        assert counts == [output.usage.completion_tokens for output in want]
        assert [g.message.response_metadata["seed"] for g in generations] == [output.seed for output in want]
    prompt, completion = want[0].usage.prompt_tokens, sum(output.usage.completion_tokens for output in want)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    assert result.llm_output["token_usage"] == {name: 2 * count for name, count in usage.items()}
    assert result.llm_output["model_name"] == "ash+birch+cedar"


async def test_the_first_of_several_answers_is_that_of_an_ordinary_call(ensemble, chat):
    want = chat.invoke(MESSAGES, **HOT)
    assert len({g.text for g in chat.generate([MESSAGES], n=3, **HOT).generations[0]}) > 1
    own = ChatGaC(ensemble=ensemble, n=3, **HOT)
    for message in (own.invoke(MESSAGES), await chat.bind(n=2).ainvoke(MESSAGES, **HOT)):
        assert message.content == want.content
        assert message.usage_metadata["output_tokens"] == want.usage_metadata["output_tokens"]
        assert message.response_metadata.keys() == want.response_metadata.keys()


async def test_several_answers_to_texts(ensemble):
    llm = GaCLLM(ensemble=ensemble, n=2, **HOT)
    want = [ensemble.generate_choices(prompt, n=2, **HOT) for prompt in ("In which", "Who built")]
    results = [llm.generate(["In which", "Who built"]), await llm.agenerate(["In which", "Who built"])]
    for result in results:
        assert [[g.text for g in own] for own in result.generations] == [[o.text for o in own] for own in want]
        assert result.llm_output["token_usage"] == {
            "prompt_tokens": sum(own[0].usage.prompt_tokens for own in want),
            "completion_tokens": sum(o.usage.completion_tokens for own in want for o in own),
            "total_tokens": result.llm_output["token_usage"]["total_tokens"],
        }
    assert llm.batch(["In which", "Who built"]) == [own[0].text for own in want]
    long = "word " * 3000
    with pytest.raises(RequestError, match="context holds 1024"):
        llm.generate(["In which", long])
    with pytest.raises(RequestError, match="context holds 1024"):
        await llm.agenerate(["In which", long])


async def test_texts_wait_for_places_for_all_of_their_answers():
    with ensemble_of([random_pair("llama")], max_batch_size=2, max_queue=1) as one:
        llm = GaCLLM(ensemble=one, n=3, **HOT)
        prompts = [f"one two {number}" for number in range(5)]
        want = [[output.text for output in one.generate_choices(prompt, n=3, **HOT)] for prompt in prompts]
        for result in (llm.generate(prompts), await llm.agenerate(prompts)):
            assert [[generation.text for generation in own] for own in result.generations] == want
        assert llm.generate([]).generations == (await llm.agenerate([])).generations == []


async def test_several_answers_are_not_streamed(ensemble, chat):
    llm = GaCLLM(ensemble=ensemble, **HOT)
    for model in (chat, llm):
        with pytest.raises(RequestError, match=r"n=2 answers cannot be streamed: .* generate"):
            list(model.stream("In which", n=2))
        with pytest.raises(RequestError, match="n=2 answers cannot be streamed"):
            [chunk async for chunk in model.astream("In which", n=2)]
    with pytest.raises(RequestError, match="n=2 answers cannot be streamed"):
        ChatGaC(ensemble=ensemble, streaming=True).invoke(ASK, n=2)
    # Handlers of streams do not make a stream of a model that is invoked.
    step = RunnableLambda(lambda question: chat.invoke(question, n=2, max_tokens=4).content)
    events = [event async for event in step.astream_events(ASK, version="v2")]
    assert events[-1]["data"]["output"] == chat.invoke(ASK, max_tokens=4).content


def test_penalties_and_biases(ensemble, chat):
    token = ensemble.encode(chat.invoke(MESSAGES).text)[0]
    for given in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"logit_bias": {token: -100}}):
        asked = {**HOT, "max_tokens": 24}
        want = ensemble.generate(QUESTION, **given, **asked).text
        assert chat.bind(**given).invoke(MESSAGES, **asked).content == want
        assert ChatGaC(ensemble=ensemble, **given, **asked).invoke(MESSAGES).content == want
    assert chat.invoke(MESSAGES, logit_bias={token: -100}).content != chat.invoke(MESSAGES).content
    with pytest.raises(RequestError, match="presence_penalty"):
        ChatGaC(ensemble=ensemble, presence_penalty=3)
