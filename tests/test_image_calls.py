"""Conversations with images through both frameworks and the server: the answer is the core's, and names who saw."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import httpx
import pytest
from conftest import EMBEDDED, QUESTION
from langchain_core.messages import HumanMessage, SystemMessage
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers.base import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore
from pydantic import BaseModel, Field
from server_fixture import served
from vision_members import picture, vision_members  # noqa: F401

from gac_core import Ensemble, Grammar, MemberConfig, RequestError
from gac_core.server.catalog import Catalog
from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM

SHOWN, OTHER = picture(1), picture(2)
ASKED = [{"role": "user", "content": ["Look: ", SHOWN, " What is it?"]}]
TOKENS = 6


class Colour(BaseModel):
    """The colour of a picture."""

    name: str = Field(max_length=4)


@pytest.fixture(scope="module")
def both(vision_members):  # noqa: F811
    """A member that reads images and one that reads the text alone."""
    members = [MemberConfig(vision_members("llava").folder, name="eye"), MemberConfig(EMBEDDED[1], name="blind")]
    with Ensemble.load(members, dtype="float32", device="cpu") as ensemble:
        yield ensemble


@pytest.fixture(scope="module")
def answer(both):
    return both.generate(ASKED, max_tokens=TOKENS, logprobs=0)


def seen(metadata) -> dict[str, int]:
    return {name: member["images"] for name, member in metadata["members"].items()}


def test_the_image_matters(both, answer):
    other = both.generate(
        [{"role": "user", "content": ["Look: ", OTHER, " What is it?"]}], max_tokens=TOKENS, logprobs=0
    )
    blind = both.generate([{"role": "user", "content": "Look:  What is it?"}], max_tokens=TOKENS, logprobs=0)
    first = [output.logprobs[0].logprob for output in (answer, other, blind)]
    assert len(set(first)) == 3


# ---- LangChain


MESSAGE = HumanMessage(
    [
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": {"url": SHOWN.data_url}},
        {"type": "text", "text": " What is it?"},
    ]
)


def test_langchain_answers_as_the_core(both, answer):
    chat = ChatGaC(ensemble=both, max_tokens=TOKENS)
    assert chat.profile["image_inputs"] is True
    assert chat.profile["image_url_inputs"] is chat.profile["image_tool_message"] is False
    for message in (chat.invoke([MESSAGE]), asyncio.run(chat.ainvoke([MESSAGE])), sum_of(chat.stream([MESSAGE]))):
        assert message.text == answer.text
        assert seen(message.response_metadata["gac"]) == {"eye": 1, "blind": 0}
        assert message.usage_metadata["input_tokens"] == answer.usage.prompt_tokens
    counted = {name: stats.prompt_tokens for name, stats in answer.stats.members.items()}
    assert chat.get_num_tokens_from_messages([MESSAGE]) == max(counted.values())
    batched = chat.batch([[MESSAGE], [SystemMessage("Be brief."), HumanMessage("Hello")], [MESSAGE]])
    assert [message.text for message in batched][::2] == [answer.text] * 2
    assert [sum(seen(message.response_metadata["gac"]).values()) for message in batched] == [1, 0, 1]


def sum_of(chunks):
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk
    return whole


def test_one_member_answers_alone_if_it_sees(both):
    chat = ChatGaC(ensemble=both, max_tokens=TOKENS)
    assert seen(chat.invoke([MESSAGE], model="eye").response_metadata["gac"]) == {"eye": 1}
    with pytest.raises(RequestError, match="none of the members that take part can read them: blind"):
        chat.invoke([MESSAGE], model="blind")


def test_structured_output_of_an_image(both):
    chat = ChatGaC(ensemble=both, max_tokens=64)
    answer = chat.with_structured_output(Colour, include_raw=True).invoke([MESSAGE])
    assert isinstance(answer["parsed"], Colour)
    assert seen(answer["raw"].response_metadata["gac"]) == {"eye": 1, "blind": 0}
    program = GaCLLM(ensemble=both, max_tokens=64).as_structured_llm(Colour)
    assert isinstance(program.chat([block_message()]).raw, Colour)


def test_profiles_of_blind_ensembles(ensemble):
    assert ChatGaC(ensemble=ensemble).profile["image_inputs"] is False


# ---- LlamaIndex


def block_message(text: bool = True) -> ChatMessage:
    image = ImageBlock(image=SHOWN.data)
    return ChatMessage(role="user", blocks=[TextBlock(text="Look:"), image, TextBlock(text="What is it?")][1 - text :])


def test_llamaindex_answers_as_the_core(both):
    expected = both.generate([{"role": "user", "content": ["Look:", SHOWN, "\nWhat is it?"]}], max_tokens=TOKENS)
    llm = GaCLLM(ensemble=both, max_tokens=TOKENS)
    for response in (
        llm.chat([block_message()]),
        list(llm.stream_chat([block_message()]))[-1],
        asyncio.run(llm.achat([block_message()])),
    ):
        assert response.message.content == expected.text
        assert seen(response.raw["gac"]) == {"eye": 1, "blind": 0}
        assert response.raw["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_llamaindex_templates_show_images(both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown.png").write_bytes(SHOWN.data)
    template = RichPromptTemplate("{% chat role='user' %}{{ path | image }}What is {{ it }}?{% endchat %}")
    llm = GaCLLM(ensemble=both, max_tokens=TOKENS)
    [message] = template.format_messages(path="shown.png", it="this")
    assert llm.predict(template, path="shown.png", it="this") == llm.chat([message]).message.content


class OneImage(BaseRetriever):
    """Retrieves an image and a passage."""

    def _retrieve(self, query_bundle):
        node = ImageNode(image=SHOWN.data_url.partition(",")[2], image_mimetype="image/png", text="A label.")
        return [NodeWithScore(node=node, score=1.0)]


class Answers(BaseEventHandler):
    """Keeps the responses of chats."""

    responses: list = Field(default_factory=list)

    def handle(self, event, **kwargs):
        if isinstance(event, LLMChatEndEvent):
            self.responses.append(event.response)


def test_query_engines_pass_images_to_the_members(both):
    engine = RetrieverQueryEngine.from_args(OneImage(), llm=GaCLLM(ensemble=both, max_tokens=TOKENS), multimodal=True)
    answers = Answers()
    with instrumented(answers):
        response = engine.query("What is shown?")
    [answered] = answers.responses
    assert seen(answered.raw["gac"]) == {"eye": 1, "blind": 0}
    assert str(response) == answered.message.content


@contextmanager
def instrumented(handler):
    root = get_dispatcher("root")
    root.add_event_handler(handler)
    yield
    root.event_handlers.remove(handler)


# ---- the server


@pytest.fixture(scope="module")
def client(both):
    with served(Catalog({"gac": both})) as url, httpx.Client(base_url=url) as opened:
        yield opened


BODY = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {"type": "image_url", "image_url": {"url": SHOWN.data_url, "detail": "auto"}},
                {"type": "text", "text": " What is it?"},
            ],
        }
    ],
    "max_tokens": TOKENS,
    "temperature": 0,
}


def test_the_server_answers_as_the_core(client, answer):
    response = client.post("/v1/chat/completions", json=BODY)
    [choice] = response.json()["choices"]
    assert choice["message"]["content"] == answer.text
    assert seen(choice["gac"]) == {"eye": 1, "blind": 0}
    assert response.json()["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    counted = client.post("/tokenize", json={"messages": BODY["messages"]}).json()
    assert counted["members"] == {name: stats.prompt_tokens for name, stats in answer.stats.members.items()}


def test_the_server_names_the_models_that_see(client):
    shown = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert shown["gac"]["vision_members"] == ["eye"]
    modalities = {name: model["input_modalities"] for name, model in shown.items()}
    assert modalities == {"gac": ["text", "image"], "gac/eye": ["text", "image"], "gac/blind": ["text"]}


def test_the_server_refuses_what_no_participant_sees(client):
    response = client.post("/v1/chat/completions", json=BODY | {"model": "gac/blind"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "messages", "invalid_value")
    assert "none of the members that take part can read them: blind" in error["message"]


def test_a_grammar_holds_for_images(both):
    output = both.generate(ASKED, max_tokens=20, grammar=Grammar.choices(["red", "green"]))
    assert output.text in ("red", "green")


def test_scores_and_likelihoods_read_images(both):
    assert both.score(ASKED, "red") != both.score(QUESTION, "red")
