"""Answers from documents over the server: those of the ensemble, with citations; clients, limits, metrics and logs."""

from __future__ import annotations

import json

import pytest
from app_client import AppClient, assert_error
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import AsyncOpenAI

from gac_core import Document, DocumentPrompt, as_metadata
from gac_core.server.generation.documents import sources_of
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.telemetry.logs import RequestLog

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TEXTS = ("The Torno Bridge stands in Halkus.", "The Silver Inn stands in Marwin.", "Entry costs four crowns.")
URL = "https://handbook.example/bridges"
DOCUMENTS = [
    {"text": TEXTS[0], "id": "bridges", "score": 0.9, "url": URL, "title": "Bridges"},
    {"text": TEXTS[1], "score": 0.5, "url": URL},
    {"text": TEXTS[2], "score": 0.1},
]
ASKED = "{document}\n\nQuestion: In which town is the Torno Bridge?"
MESSAGES = [{"role": "system", "content": "Answer from the passage."}, {"role": "user", "content": ASKED}]
GREEDY = {"temperature": 0, "max_tokens": 12}
BODY = {"messages": MESSAGES, "documents": DOCUMENTS, **GREEDY}
VALUES = [Document(item["text"], item.get("id"), item["score"]) for item in DOCUMENTS]


@pytest.fixture
async def client(ensemble):
    async with AppClient(ensemble, max_documents=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(ensemble):
    """The answer to `BODY`."""
    return ensemble.generate(DocumentPrompt(MESSAGES, VALUES), max_tokens=12)


def leaves(value: object, path: str = "") -> dict[str, object]:
    """The numbers and texts of a value by their places."""
    if not isinstance(value, (dict, list, tuple)):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: leaf for key, each in pairs for place, leaf in leaves(each, f"{path}/{key}").items()}


def assert_same(gac: dict, output) -> None:
    """Raises unless an answer's `gac` has what an output has about documents, up to rounding in other batches."""
    keys = ("citations", "document_shares", "doubt")
    found, wanted = (leaves({key: values[key] for key in keys}) for values in (gac, as_metadata(output)))
    assert found.keys() == wanted.keys()
    for place, value in wanted.items():
        assert found[place] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value)
    assert found["/citations/0/document"]


def url_citations(output) -> list[dict]:
    titles = {"bridges": "Bridges", "2": "2"}
    return [
        {"start_index": each.start, "end_index": each.end, "url": URL, "title": titles[each.document]}
        for each in output.citations
        if each.document in titles
    ]


async def events(client, **body) -> list[dict]:
    response = await client.post(CHAT, json={**BODY, **body, "stream": True})
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


# ---- answers


async def test_an_answer_is_that_of_the_ensemble_with_its_citations(client, expected):
    answer = (await client.post(CHAT, json=BODY)).json()
    [choice] = answer["choices"]
    assert choice["message"]["content"] == expected.text != ""
    assert_same(choice["gac"], expected)
    assert set(choice["gac"]["document_shares"]) == {"bridges", "2", "3"}
    assert choice["message"]["annotations"] == [
        {"type": "url_citation", "url_citation": each} for each in url_citations(expected)
    ]
    assert url_citations(expected)
    for each in choice["message"]["annotations"]:
        place = each["url_citation"]
        assert expected.text[place["start_index"] : place["end_index"]] in [item.text for item in expected.citations]
    # All that the gate read, in all voices.
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] <= answer["usage"]["prompt_tokens"]


async def test_a_stream_has_the_citations_in_its_last_chunk(client, expected):
    choices = await events(client)
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected.text
    assert all("annotations" not in choice["delta"] and "gac" not in choice for choice in choices[:-1])
    assert [each["url_citation"] for each in choices[-1]["delta"]["annotations"]] == url_citations(expected)
    assert_same(choices[-1]["gac"], expected)


def test_sources_have_the_title_or_the_id():
    found = sources_of(ChatBody.model_validate({**BODY, "documents": [*DOCUMENTS, {"text": "a", "title": "t"}]}))
    assert {name: (source.url, source.title) for name, source in found.items()} == {
        "bridges": (URL, "Bridges"),
        "2": (URL, "2"),
    }


async def test_documents_without_an_address_are_cited_by_their_ids_alone(client, ensemble):
    answer = (await client.post(CHAT, json={**BODY, "documents": list(TEXTS)})).json()["choices"][0]
    output = ensemble.generate(DocumentPrompt(MESSAGES, TEXTS), max_tokens=12)
    assert answer["message"]["content"] == output.text
    assert "annotations" not in answer["message"]
    assert_same(answer["gac"], output)


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"document_weights": "equal"}, {"weights": "equal"}),
        ({"document_weights": [1, 2, 4]}, {"weights": [1, 2, 4]}),
        ({"prior": False}, {"prior": False}),
        ({"prior": "No passage."}, {"prior": "No passage."}),
    ],
)
async def test_fields_are_those_of_the_prompt(client, ensemble, fields, values):
    answer = (await client.post(CHAT, json={**BODY, **fields})).json()["choices"][0]
    output = ensemble.generate(DocumentPrompt(MESSAGES, VALUES, **values), max_tokens=12)
    assert answer["message"]["content"] == output.text
    assert_same(answer["gac"], output)


async def test_place_and_rule(client, ensemble):
    messages = [{"role": "user", "content": ASKED.replace("{document}", "<passage>") + " {document}"}]
    body = {"messages": messages, "place": "<passage>", "combine_documents": "contrast:0.5", "threshold": 0.9}
    answer = (await client.post(CHAT, json={**BODY, **body})).json()["choices"][0]
    prompt = DocumentPrompt(messages, VALUES, place="<passage>")
    output = ensemble.generate(prompt, max_tokens=12, combine_documents="contrast:0.5", threshold=0.9)
    assert answer["message"]["content"] == output.text
    assert answer["gac"]["combine_documents"] == output.stats.settings.combine_documents == "contrast:0.5"
    assert_same(answer["gac"], output)


async def test_completions_of_several_prompts_read_the_same_documents(client, ensemble):
    prompts = [ASKED, "Passage: {document}\nTown:"]
    asked = {"prompt": prompts, "documents": DOCUMENTS, "n": 2, "temperature": 0.7, "seed": 3, "max_tokens": 6}
    answer = (await client.post(TEXT, json=asked)).json()
    texts = [choice["text"] for choice in answer["choices"]]
    same = {"n": 2, "temperature": 0.7, "seed": 3, "max_tokens": 6}
    outputs = [each for p in prompts for each in ensemble.generate_choices(DocumentPrompt(p, VALUES), **same)]
    assert texts == [output.text for output in outputs]
    for choice, output in zip(answer["choices"], outputs, strict=True):
        assert_same(choice["gac"], output)
    assert answer["usage"]["prompt_tokens"] == sum(output.usage.prompt_tokens for output in outputs[::2])
    assert client.records[-1].documents == 6


async def test_a_member_alone_reads_documents(client, ensemble):
    answer = (await client.post(CHAT, json={**BODY, "model": "gac/birch"})).json()["choices"][0]
    output = ensemble.generate(DocumentPrompt(MESSAGES, VALUES), max_tokens=12, weights=[0, 1, 0], threshold=None)
    assert len(output.document_shares) == 3
    assert answer["message"]["content"] == output.text
    assert_same(answer["gac"], output)


# ---- clients


async def test_the_openai_package(client, expected):
    extra = {"documents": DOCUMENTS, "prior": True}
    async with AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client) as api:
        answer = await api.chat.completions.create(model="gac", messages=MESSAGES, extra_body=extra, **GREEDY)
        [choice] = answer.choices
        assert [each.url_citation.model_dump() for each in choice.message.annotations] == url_citations(expected)
        assert_same(choice.model_extra["gac"], expected)
        async with api.chat.completions.stream(model="gac", messages=MESSAGES, extra_body=extra, **GREEDY) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.annotations == choice.message.annotations
        again = [*MESSAGES, choice.message.model_dump(), {"role": "user", "content": "Who says so?"}]
        more = await api.chat.completions.create(model="gac", messages=again, extra_body=extra, **GREEDY)
        assert more.choices[0].message.content


async def test_chat_openai(client, expected):
    chat = ChatOpenAI(
        model="gac",
        base_url="http://localhost/v1",
        api_key="none",
        max_retries=0,
        http_async_client=client,
        extra_body={"documents": DOCUMENTS},
        **GREEDY,
    )
    assert (await chat.ainvoke(MESSAGES)).content == expected.text
    parts = [part.content async for part in chat.astream(MESSAGES)]
    assert "".join(parts) == expected.text


async def test_openai_like(client, expected):
    like = OpenAILike(
        model="gac",
        api_base="http://localhost/v1",
        api_key="none",
        max_retries=0,
        async_http_client=client,
        is_chat_model=True,
        additional_kwargs={"extra_body": {"documents": DOCUMENTS}},
        **GREEDY,
    )
    response = await like.achat([ChatMessage(each["content"], role=each["role"]) for each in MESSAGES])
    assert response.message.content == expected.text
    [choice] = response.raw.choices
    assert [each.url_citation.model_dump() for each in choice.message.annotations] == url_citations(expected)


# ---- limits and errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * 9}, "documents"),
        ({"documents": ["a", {"text": "b", "id": "1"}]}, "documents"),
        ({"documents": ["a", {"text": "b", "score": 1}]}, "documents"),
        ({"documents": ["a", 1]}, "documents[1]"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": [{"text": ""}]}, "documents[0].text"),
        ({"documents": [{"text": "a", "score": "1"}]}, "documents[0].score"),
        ({"documents": [{"text": "a", "uri": "b"}]}, "documents[0].uri"),
        ({"documents": ["a"], "document_weights": "best"}, "document_weights"),
        ({"documents": ["a"], "document_weights": [1, 2]}, "document_weights"),
        ({"documents": ["a"], "document_weights": [0]}, "document_weights[0]"),
        ({"documents": ["a"], "document_weights": []}, "document_weights"),
        # Answers repeat them for each sentence.
        ({"documents": [{"text": "a", "id": "i" * 513}]}, "documents[0].id"),
        ({"documents": [{"text": "a", "title": "t" * 1025}]}, "documents[0].title"),
        ({"documents": [{"text": "a", "url": "u" * 4097}]}, "documents[0].url"),
        ({"documents": ["a"], "prior": 1}, "prior"),
        ({"documents": ["a"], "place": ""}, "place"),
        ({"documents": ["a"], "place": "<passage>"}, "messages"),
        ({"documents": ["a"], "messages": [{"role": "user", "content": "{document}{document}"}]}, "messages"),
        ({"documents": ["a"], "combine_documents": "sum"}, "combine_documents"),
        ({"documents": None, "document_weights": "equal"}, "document_weights"),
        ({"documents": None, "prior": False}, "prior"),
        ({"documents": None, "place": "x"}, "place"),
        ({"documents": None, "combine_documents": "mean"}, "combine_documents"),
    ],
)
async def test_refusals_name_the_field(client, fields, param):
    response = await client.post(CHAT, json={**BODY, **fields})
    assert_error(response, 400, "unknown_parameter" if param.endswith("uri") else "invalid_value")
    assert response.json()["error"]["param"] == param


async def test_a_document_that_does_not_fit_is_named(client):
    response = await client.post(CHAT, json={**BODY, "documents": ["a", {"text": "b " * 3000, "id": "long"}]})
    assert_error(response, 400, "context_length_exceeded")
    assert "'long'" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "documents[1]"


async def test_echo_has_no_one_prompt_to_repeat(client):
    response = await client.post(TEXT, json={"prompt": ASKED, "documents": ["a"], "echo": True})
    assert_error(response, 400, "invalid_value")
    assert response.json()["error"]["param"] == "echo"


# ---- observation


async def test_documents_are_counted_and_not_logged(ensemble, caplog):
    async with AppClient(ensemble, observers=[RequestLog()]) as client:
        caplog.set_level("DEBUG")
        await client.post(CHAT, json=BODY)
        await client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1})
        metrics = (await client.get("/metrics")).text
    assert 'gac_documents_total{model="gac"} 3.0' in metrics
    logged = [record for record in caplog.records if getattr(record, "route", None) == CHAT]
    assert [record.documents for record in logged] == [3, None]
    assert not any(text in str(vars(record)) for record in caplog.records for text in (*TEXTS, URL))


async def test_the_openapi_document_describes_them(client):
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert set(schemas["DocumentBody"]["properties"]) == {"text", "id", "score", "title", "url"}
    for name in ("ChatBody", "CompletionBody"):
        assert {"documents", "document_weights", "prior", "place", "combine_documents"} <= set(
            schemas[name]["properties"]
        )
    assert "annotations" in schemas["AnswerMessage"]["properties"]
