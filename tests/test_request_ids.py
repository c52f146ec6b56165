"""Ids of requests, and the log records that hold them."""

from __future__ import annotations

import logging

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.llms import ChatMessage

from gac_core import (
    PromptTooLongError,
    RequestError,
)
from gac_langchain import GaCLLM
from gac_llamaindex import GaCLLM as IndexLLM

# ---- ids and logs


async def test_callers_name_their_requests(both, caplog):
    caplog.set_level(logging.INFO, "gac_core")
    asked = {"max_tokens": 1}
    assert both.generate("Who", request_id="a", **asked).request_id == "a"
    assert list(both.stream("Who", request_id="a", **asked))[-1].output.request_id == "a"
    assert (await both.agenerate("Who", request_id="b", **asked)).request_id == "b"
    for outputs in (
        both.generate_batch(["Who"] * 3, request_ids=["c", "c", None], **asked),
        await both.agenerate_batch(["Who"] * 3, request_ids=["c", "c", None], **asked),
    ):
        assert [output.request_id for output in outputs][:2] == ["c", "c"]
        assert len(outputs[2].request_id) == 32
    with pytest.raises(PromptTooLongError) as caught:
        both.generate("secret " * 5000, request_id="long")
    assert caught.value.request_id == "long"
    with pytest.raises(RequestError):
        both.generate("Who", request_id="wrong", temperature="secret")
    told = {record.request_id: record for record in caplog.records if hasattr(record, "request_id")}
    assert set(told) == {"long", "wrong"}
    assert told["long"].member == "m0"
    assert told["long"].levelno == logging.INFO
    assert "secret" not in caplog.text


@pytest.mark.parametrize("value", ["", 3, "a\nb", "x" * 201])
def test_request_ids_are_checked(both, value):
    with pytest.raises(RequestError, match="request_id"):
        both.generate("Who", request_id=value)
    with pytest.raises(RequestError, match="request_id"):
        both.generate_batch(["Who"], request_ids=[value])
    with pytest.raises(RequestError, match="1 request_ids for 2 requests"):
        both.generate_batch(["Who", "Where"], request_ids=["a"])


def test_frameworks_name_their_requests(both, monkeypatch):
    labels, submit = [], both._session.submit
    monkeypatch.setattr(
        both._session,
        "submit",
        lambda request, *how, **limits: labels.append(request.label) or submit(request, *how, **limits),
    )

    class Runs(BaseCallbackHandler):
        def __init__(self):
            self.ids = []

        def on_llm_start(self, *given, run_id, **named):
            self.ids.append(str(run_id))

    runs = Runs()
    chain = GaCLLM(ensemble=both, max_tokens=1)
    chain.invoke("Who", {"callbacks": [runs]})
    assert labels == runs.ids
    chain.invoke("Who", request_id="mine")
    list(chain.stream("Who", request_id="mine"))
    chain.batch(["Who", "Where"], request_id="mine")
    index = IndexLLM(ensemble=both, max_tokens=1, complete_as="text")
    index.complete("Who", request_id="mine")
    list(index.stream_complete("Who", request_id="mine"))
    assert labels[1:] == ["mine", "mine", "mine/0", "mine/1", "mine", "mine"]


def test_chats_name_their_requests(ensemble, monkeypatch):
    from gac_langchain import ChatGaC

    labels, submit = [], ensemble._session.submit
    monkeypatch.setattr(
        ensemble._session,
        "submit",
        lambda request, *how, **limits: labels.append(request.label) or submit(request, *how, **limits),
    )
    chat = ChatGaC(ensemble=ensemble, max_tokens=1)
    told = chat.invoke("Who")
    assert labels[0] in told.id
    chat.invoke("Who", request_id="mine")
    list(chat.stream("Who", request_id="mine"))
    index = IndexLLM(ensemble=ensemble, max_tokens=1)
    index.chat([ChatMessage("Who")], request_id="mine")
    assert labels[1:] == ["mine"] * 3
    key = chat._get_llm_string(stop=None)
    assert key == chat._get_llm_string(stop=None, request_id="mine", timeout=3.0)
