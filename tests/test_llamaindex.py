"""The LlamaIndex model: nine methods, per-call threshold, counts, and a query engine."""

from __future__ import annotations

import copy
import pickle
import time
from itertools import chain
from pathlib import Path

import pytest
from conftest import EMBEDDED, QUESTION, member_ids
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock

from gac_core import (
    ConfigError,
    FinishReason,
    MemberConfig,
    OutputChunk,
    RequestError,
    RequestOutput,
    RequestStats,
    UnknownArgumentError,
    Usage,
)
from gac_llamaindex import GaCLLM
from gac_llamaindex.responses import ChatReader

DRAWN = {"max_tokens": 16, "temperature": 3.0, "seed": 5}
MESSAGES = [ChatMessage(role=m["role"], content=m["content"]) for m in QUESTION]


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=16)


@pytest.fixture
def answer(ensemble):
    return ensemble.generate(QUESTION, max_tokens=16)


@pytest.fixture
def text(ensemble):
    # Sampled hot: as bare text the embedded members mostly end at once, which would prove little.
    return ensemble.generate([{"role": "user", "content": "In which town"}], **DRAWN).text


def test_metadata(llm):
    assert llm.metadata.context_window == 1024
    assert llm.metadata.is_chat_model
    assert llm.metadata.num_output == 16
    assert llm.metadata.model_name == "ash+birch+cedar"


def test_chat_and_its_stream(llm, answer):
    response = llm.chat(MESSAGES)
    assert response.message.content == answer.text
    assert response.raw["usage"]["completion_tokens"] == answer.usage.completion_tokens
    streamed = list(llm.stream_chat(MESSAGES))
    assert streamed[-1].message.content == answer.text == "".join(r.delta for r in streamed)
    assert streamed[-1].raw["usage"]["prompt_tokens"] == answer.usage.prompt_tokens


async def test_async_chat_and_its_stream(llm, answer):
    assert (await llm.achat(MESSAGES)).message.content == answer.text
    assert "".join([r.delta async for r in await llm.astream_chat(MESSAGES)]) == answer.text


def test_complete_and_its_stream(llm, text):
    assert text
    assert llm.complete("In which town", **DRAWN).text == text
    streamed = list(llm.stream_complete("In which town", **DRAWN))
    assert streamed[-1].text == text == "".join(r.delta for r in streamed)


async def test_async_complete_and_its_stream(llm, text):
    assert (await llm.acomplete("In which town", **DRAWN)).text == text
    assert "".join([r.delta async for r in await llm.astream_complete("In which town", **DRAWN)]) == text


@pytest.mark.parametrize("threshold", [0.0, 0.5, None])
def test_the_threshold_is_per_call(ensemble, llm, threshold):
    want = ensemble.generate(QUESTION, max_tokens=16, threshold=threshold)
    response = llm.chat(MESSAGES, threshold=threshold)
    assert response.message.content == want.text
    assert response.raw["gac"]["share_ensembled"] == want.stats.share_ensembled
    own = GaCLLM(ensemble=ensemble, max_tokens=16, threshold=threshold)
    assert own.chat(MESSAGES).raw["gac"]["share_ensembled"] == want.stats.share_ensembled


def test_wrong_things_are_refused(ensemble, llm):
    with pytest.raises(UnknownArgumentError, match="treshold"):
        llm.chat(MESSAGES, treshold=0.5)
    with pytest.raises(UnknownArgumentError, match="treshold"):
        GaCLLM(ensemble=ensemble, treshold=0.5)
    with pytest.raises(ConfigError, match="GAC_CONFIG"):
        GaCLLM()
    with pytest.raises(ConfigError, match="one of models"):
        GaCLLM(EMBEDDED, ensemble=ensemble)
    with pytest.raises(ConfigError, match="dtype goes with models"):
        GaCLLM(ensemble=ensemble, dtype="float32")
    with pytest.raises(RequestError, match="threshold"):
        llm.with_threshold(1.5)


def test_the_callers_messages_stay_as_they_were(llm):
    before = [message.model_copy(deep=True) for message in MESSAGES]
    llm.chat(MESSAGES)
    list(llm.stream_chat(MESSAGES))
    assert before == MESSAGES


def test_it_loads_models_itself(answer):
    assert GaCLLM(EMBEDDED, dtype="float32", max_tokens=16).chat(MESSAGES).message.content == answer.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_query_engine_answers_from_its_documents(llm, streaming):
    index = SummaryIndex.from_documents([Document(text="The Torno Bridge stands in Halkus.")])
    response = index.as_query_engine(llm=llm, streaming=streaming).query("In which town is the Torno Bridge?")
    text = "".join(response.response_gen) if streaming else str(response)
    assert text.strip()
    assert response.source_nodes[0].text == "The Torno Bridge stands in Halkus."


def test_every_response_holds_the_text_so_far(llm):
    text, responses = "", list(llm.stream_chat(MESSAGES))
    for response in responses:
        text += response.delta
        assert response.message.content == text
    assert [response.raw is None for response in responses] == [True] * (len(responses) - 1) + [False]


def test_reading_a_stream_takes_time_that_grows_with_its_length():
    def seconds(length):
        reader, chunk = ChatReader(), OutputChunk("word ")
        begun = time.perf_counter()
        for _ in range(length):
            reader.read(chunk)
        return time.perf_counter() - begun

    seconds(100)
    assert seconds(8000) < 12 * seconds(2000)


def test_thoughts_stand_beside_the_answer():
    done = RequestOutput(
        "", "yes", (), FinishReason.STOP, None, Usage(1, 1), RequestStats(), None, None, reasoning="let me see"
    )
    reader = ChatReader()
    first = reader.read(OutputChunk("", reasoning="let me "))
    reader.read(OutputChunk("", reasoning="see"))
    last = reader.read(OutputChunk("yes", output=done))
    assert first.additional_kwargs == {"thinking_delta": "let me "}
    assert [type(block) for block in last.message.blocks] == [ThinkingBlock, TextBlock]
    assert (last.message.blocks[0].content, last.message.content) == ("let me see", "yes")


def test_logprobs(llm):
    whole = llm.chat(MESSAGES, logprobs=2).logprobs
    streamed = [entry for r in llm.stream_chat(MESSAGES, logprobs=2) for entry in r.logprobs]
    assert [[one.token for one in entry] for entry in whole] == [[one.token for one in entry] for entry in streamed]
    # What else runs, and how far drafts reach, decides how a forward is batched, and with it how it is rounded.
    for one, other in zip(chain(*whole), chain(*streamed), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert all(2 <= len(entry) <= 3 and entry[0].logprob <= 0 for entry in whole)
    assert llm.chat(MESSAGES).logprobs is None


def test_penalties_and_biases(ensemble, llm):
    token = ensemble.encode(llm.chat(MESSAGES, **DRAWN).message.content)[0]
    for given in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"logit_bias": {token: -100}}):
        want = ensemble.generate(QUESTION, **given, **DRAWN).text
        assert llm.chat(MESSAGES, **given, **DRAWN).message.content == want
        assert GaCLLM(ensemble=ensemble, **given, **DRAWN).chat(MESSAGES).message.content == want


def test_a_bias_is_written_down():
    bias = {3: -100.0, "a": 1.0, b"e": 2.0}
    own = GaCLLM(EMBEDDED, dtype="float32", logit_bias=bias)
    for again in (GaCLLM.from_json(own.to_json()), pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert again.logit_bias == bias


async def test_an_answer_of_several_is_refused(ensemble, llm):
    with pytest.raises(RequestError, match=r"n=2: .*llm\.ensemble\.generate_choices"):
        llm.chat(MESSAGES, n=2)
    with pytest.raises(RequestError, match="n=2"):
        await llm.astream_complete("In which", n=2)
    with pytest.raises(UnknownArgumentError, match="'n'"):
        GaCLLM(ensemble=ensemble, n=2)
    assert llm.chat(MESSAGES, n=1, max_tokens=1).message.content is not None


def test_copies_share_the_engine(ensemble, llm):
    for copied in (llm.with_threshold(0.5), copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert copied.ensemble is ensemble
        assert copied.chat(MESSAGES, threshold=None).message.content
    assert llm.with_threshold(0.5).threshold == 0.5
    assert llm.threshold == "default"


def test_ten_models_load_once():
    models = [GaCLLM(EMBEDDED, dtype="float32", threshold=number / 10) for number in range(10)]
    assert len({tuple(member_ids(model.ensemble)) for model in models}) == 1


def test_it_is_written_down_without_its_engine(tmp_path, monkeypatch, ensemble):
    fields = {"max_tokens": 12, "threshold": 0.25, "stop": ["x"], "system_prompt": "Be brief."}
    path = tmp_path / "gac.yaml"
    path.write_text(ensemble.config.to_yaml(), encoding="utf-8")
    monkeypatch.setenv("GAC_CONFIG", str(path))
    made = [
        GaCLLM([MemberConfig(EMBEDDED[0], dtype="float32"), *map(Path, EMBEDDED[1:])], **fields),
        GaCLLM(ensemble=ensemble, **fields),
        GaCLLM.from_config(path, **fields),
        GaCLLM.from_config(ensemble.config, **fields),
        GaCLLM(config={"members": EMBEDDED}, **fields),
        GaCLLM(**fields),
    ]
    monkeypatch.delenv("GAC_CONFIG")
    for one in made:
        for again in (
            GaCLLM.from_json(one.to_json()),
            GaCLLM.from_dict(one.to_dict()),
            pickle.loads(pickle.dumps(one)),
        ):
            assert {name: getattr(again, name) for name in fields} == fields
            assert again.ensemble.config == one.ensemble.config
    assert member_ids(made[2].ensemble) == member_ids(made[3].ensemble) == member_ids(made[5].ensemble)


def test_token_counts(ensemble, llm):
    assert llm.encode("In which town") == ensemble.encode("In which town") != []


def test_prompts_that_the_user_renders_keep_their_control_tokens(ensemble):
    """Own functions that render prompts put control tokens there on purpose; plain prompts keep words as words."""
    llm = GaCLLM(ensemble=ensemble, complete_as="text")
    word = next(iter(ensemble._members[0].tokenizer.control_tokens.values()))
    text = f"In which {word}town"

    def shaped(prompt):
        return f"In which {word}{prompt}"

    def read(llm, prompt, **kwargs):
        response = llm.complete(prompt, **kwargs, **DRAWN)
        return response.text, response.raw["usage"]["prompt_tokens"]

    outputs = [ensemble.generate(text, parse_special=parse, **DRAWN) for parse in (True, False)]
    allowed, plain = [(output.text, output.usage.prompt_tokens) for output in outputs]
    assert allowed != plain
    assert read(llm, text) == plain
    assert read(llm, text, parse_special=True) == allowed
    own = GaCLLM(ensemble=ensemble, completion_to_prompt=shaped)
    assert read(own, "town") == allowed
    assert read(own, text, formatted=True) == allowed
    assert read(own, "town", parse_special=False) == plain
    kept = GaCLLM(ensemble=ensemble, completion_to_prompt=shaped, parse_special=False)
    assert read(kept, "town") == plain
    formatted = GaCLLM(ensemble=ensemble, messages_to_prompt=lambda messages: shaped(messages[0].content))
    response = formatted.chat([ChatMessage(role="user", content="town")], **DRAWN)
    assert (response.message.content, response.raw["usage"]["prompt_tokens"]) == allowed
    assert GaCLLM.from_dict(GaCLLM(EMBEDDED, parse_special=True).to_dict()).parse_special is True
