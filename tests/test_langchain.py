"""The LangChain models: every way in, per-call arguments, counts, errors."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, QUESTION
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser

from gac_core import ConfigError, MemberConfig, RequestError, UnknownArgumentError
from gac_langchain import ChatGaC, GaCLLM

# Sampled hot: as bare text the embedded members mostly end at once, which would prove little.
DRAWN = {"max_tokens": 16, "temperature": 1.5, "seed": 5}
MESSAGES = [SystemMessage(QUESTION[0]["content"]), HumanMessage(QUESTION[1]["content"])]


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=16)


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, **DRAWN)


@pytest.fixture
def answer(ensemble):
    return ensemble.generate(QUESTION, max_tokens=16)


def test_chat_says_what_the_ensemble_says(chat, answer):
    message = chat.invoke(MESSAGES)
    assert message.content == answer.text
    assert message.usage_metadata["input_tokens"] == answer.usage.prompt_tokens
    assert message.usage_metadata["output_tokens"] == answer.usage.completion_tokens
    assert message.response_metadata["finish_reason"] == answer.finish_reason
    assert message.response_metadata["gac"]["share_ensembled"] == 1.0
    assert message.response_metadata["model_name"] == "ash+birch+cedar"


def test_chat_streams_the_same(chat, answer):
    chunks = list(chat.stream(MESSAGES))
    assert "".join(chunk.content for chunk in chunks) == answer.text
    assert len(chunks) >= len(answer.tokens)
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.response_metadata["model_name"] == "ash+birch+cedar"


async def test_chat_async_says_the_same(chat, answer):
    assert (await chat.ainvoke(MESSAGES)).content == answer.text
    assert "".join([chunk.content async for chunk in chat.astream(MESSAGES)]) == answer.text


def test_chat_batches(chat, answer):
    assert [m.content for m in chat.batch([MESSAGES] * 3)] == [answer.text] * 3


@pytest.mark.parametrize("threshold", [0.0, 0.5, None])
def test_the_threshold_is_per_call(ensemble, chat, llm, threshold):
    want = ensemble.generate(QUESTION, max_tokens=16, threshold=threshold)
    share = want.stats.share_ensembled
    assert chat.invoke(MESSAGES, threshold=threshold).response_metadata["gac"]["share_ensembled"] == share
    assert chat.bind(threshold=threshold).invoke(MESSAGES).content == want.text
    last = list(chat.stream(MESSAGES, threshold=threshold))
    metadata = [c.response_metadata["gac"] for c in last if "gac" in c.response_metadata]
    assert metadata[0]["share_ensembled"] == share
    own = ChatGaC(ensemble=ensemble, max_tokens=16, threshold=threshold)
    assert own.invoke(MESSAGES).response_metadata["gac"]["share_ensembled"] == share
    text = ensemble.generate("In which", threshold=threshold, **DRAWN).text
    assert llm.invoke("In which", threshold=threshold) == text


def test_per_call_arguments_take_effect(chat, llm):
    assert chat.invoke(MESSAGES, max_tokens=1).usage_metadata["output_tokens"] == 1
    full = chat.invoke(MESSAGES).content
    letter = full[1]
    assert chat.invoke(MESSAGES, stop=[letter]).content == full[: full.index(letter)]
    text = llm.invoke("In which", max_tokens=16)
    assert llm.invoke("In which", stop=[text[1], text[2]], max_tokens=16) == text[:1]
    content = chat.invoke(MESSAGES, logprobs=2).response_metadata["logprobs"]["content"]
    assert len(content[0]["top_logprobs"]) == 2


def test_unknown_arguments_are_refused_by_name(chat, llm):
    with pytest.raises(UnknownArgumentError, match="treshold"):
        chat.invoke(MESSAGES, treshold=0.5)
    with pytest.raises(UnknownArgumentError, match="max_length"):
        llm.invoke("x", max_length=3)


def test_an_error_in_a_stream_reaches_the_reader(chat):
    with pytest.raises(RequestError, match="context holds 1024"):
        list(chat.stream("word " * 3000))


def test_unsupported_messages_are_refused(chat):
    with pytest.raises(RequestError, match="FunctionMessage"):
        chat.invoke([HumanMessage("x"), FunctionMessage("y", name="f")])
    with pytest.raises(RequestError, match="do not read sound"):
        chat.invoke([HumanMessage([{"type": "input_audio", "input_audio": {}}])])


def test_parts_of_text_are_joined(chat, answer):
    parts = [
        {"type": "text", "text": QUESTION[1]["content"][:20]},
        {"type": "text", "text": QUESTION[1]["content"][20:]},
    ]
    assert chat.invoke([MESSAGES[0], HumanMessage(parts)]).content == answer.text


def test_turns_of_the_assistant_are_sent(ensemble, chat):
    turns = [*QUESTION, {"role": "assistant", "content": "Halkus"}, {"role": "user", "content": "Who built it?"}]
    asked = [*MESSAGES, AIMessage("Halkus"), HumanMessage("Who built it?")]
    message = chat.invoke(asked, **DRAWN)
    assert message.content == ensemble.generate(turns, **DRAWN).text
    assert message.content != chat.invoke([*MESSAGES, HumanMessage("Who built it?")], **DRAWN).content


def test_llm_every_way(ensemble, llm):
    want = ensemble.generate("In which town", **DRAWN).text
    assert want
    assert llm.invoke("In which town") == want
    assert "".join(llm.stream("In which town")) == want
    assert llm.batch(["In which town"] * 3) == [want] * 3
    assert (llm | StrOutputParser()).invoke("In which town") == want
    info = llm.generate(["In which town"]).generations[0][0].generation_info
    assert info["usage"]["output_tokens"] > 0


async def test_llm_async_every_way(ensemble, llm):
    want = ensemble.generate("In which town", **DRAWN).text
    assert await llm.ainvoke("In which town") == want
    assert "".join([chunk async for chunk in llm.astream("In which town")]) == want
    assert await llm.abatch(["In which town"] * 2) == [want] * 2


def test_it_loads_models_itself(answer):
    chat = ChatGaC(models=EMBEDDED, dtype="float32", max_tokens=16)
    assert chat.invoke(MESSAGES).content == answer.text
    assert chat.model_copy()._ensemble is chat._ensemble


def test_settings_are_checked_at_once(ensemble):
    with pytest.raises((ConfigError, ValueError), match="models"):
        ChatGaC()
    with pytest.raises((ConfigError, ValueError), match="max_tokens"):
        ChatGaC(ensemble=ensemble, max_tokens=0)
    with pytest.raises(ValueError, match=r"conifg.*did you mean 'config'"):
        ChatGaC(conifg="ensemble.yaml")
    with pytest.raises(ValueError, match=r"treshold.*did you mean 'threshold'"):
        ChatGaC(ensemble=ensemble, treshold=0.5)
    assert ChatGaC(ensemble=ensemble, timeout=60, api_key="x", max_retries=2).max_tokens == 256


def test_cache_keys_differ_by_ensemble(ensemble):
    one, two = ChatGaC(ensemble=ensemble), ChatGaC(ensemble=ensemble, threshold=0.5)
    assert one._identifying_params != two._identifying_params
    template = MemberConfig(EMBEDDED[0], chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    same = [
        ChatGaC(models=[model])._get_llm_string() for model in (EMBEDDED[0], MemberConfig(EMBEDDED[0], device="cpu"))
    ]
    assert same[0] == same[1] != ChatGaC(models=[template])._get_llm_string()
    assert one.get_num_tokens("In which town") == len(ensemble.encode("In which town")) > 0


def test_rules_of_the_ensemble_reach_it_and_are_part_of_its_identity():
    keys = {}
    for commit in (None, "canonical", "context-free"):
        chat = ChatGaC(models=EMBEDDED[:2], dtype="float32", alignment="token", commit=commit, max_tokens=8)
        config = chat._ensemble.config
        assert (config.commit, config.alignment) == (commit or "canonical", "token")
        assert chat.invoke("Who?").response_metadata["gac"]["commit"] == config.commit
        keys[commit] = chat._get_llm_string()
    assert keys[None] == keys["canonical"] != keys["context-free"]


def test_words_of_prompts_become_control_tokens_only_where_that_is_asked_for(ensemble, llm):
    word = next(iter(ensemble._members[0].tokenizer.control_tokens.values()))
    text = f"In which {word}town"
    allowed = ensemble.generate(text, parse_special=True, **DRAWN).usage.prompt_tokens
    plain = ensemble.generate(text, **DRAWN).usage.prompt_tokens
    assert allowed < plain

    def read(model, **asked):
        return model.generate([text], **asked).generations[0][0].generation_info["usage"]["input_tokens"]

    assert read(llm) == plain
    assert read(llm, parse_special=True) == allowed
    assert read(GaCLLM(ensemble=ensemble, parse_special=True, **DRAWN)) == allowed
    words = {w for member in ensemble._members for w in member.tokenizer.control_tokens.values()}
    messages = [HumanMessage("".join(sorted(words)))]
    counts = [
        ChatGaC(ensemble=ensemble, parse_special=way).get_num_tokens_from_messages(messages) for way in (False, True)
    ]
    assert counts[0] > counts[1]
