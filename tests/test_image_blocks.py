"""Content blocks with images, in all forms of both frameworks, become images at their places; others are refused."""

from __future__ import annotations

import base64
import io

import PIL.Image
import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.content import create_image_block
from langchain_core.prompts import ChatPromptTemplate
from llama_index.core.base.llms.types import AudioBlock, CitableBlock, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage as LlamaMessage
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.schema import ImageDocument

from gac_core import Image, RequestError
from gac_langchain import ChatGaC
from gac_langchain.convert import to_messages
from gac_llamaindex import GaCLLM as LlamaGaC
from gac_llamaindex.messages import convert_messages

RED = Image.open(PIL.Image.new("RGB", (4, 4), (255, 0, 0)))
BASE64 = base64.b64encode(RED.data).decode()
ANTHROPIC = {"type": "base64", "media_type": "image/png", "data": BASE64}
LANGCHAIN = [
    {"type": "image", "base64": BASE64, "mime_type": "image/png"},
    {"type": "image", "url": RED.data_url},
    create_image_block(base64=BASE64, mime_type="image/png"),
    {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
    {"type": "image", "source_type": "url", "url": RED.data_url},
    {"type": "image_url", "image_url": {"url": RED.data_url}},
    {"type": "image_url", "image_url": {"url": RED.data_url, "detail": "auto"}},
    {"type": "image_url", "image_url": RED.data_url},
    {"type": "input_image", "image_url": RED.data_url, "detail": "auto"},
    {"type": "image", "source": ANTHROPIC},
]


@pytest.mark.parametrize("block", LANGCHAIN)
def test_langchain_blocks_become_images(block):
    content = [{"type": "text", "text": "What is "}, block, "this?"]
    for message in (HumanMessage(content), ChatMessage(role="user", content=content)):
        [converted] = to_messages([message])
        assert converted.parts == ("What is ", RED, "this?")
        assert (converted.role, converted.content) == ("user", "What is this?")


def test_langchain_standard_blocks_and_prompts_become_images():
    [message] = to_messages([HumanMessage(content_blocks=[{"type": "text", "text": "a"}, LANGCHAIN[0]])])
    assert message.parts == ("a", RED)
    template = ChatPromptTemplate([("human", [{"type": "image_url", "image_url": "{shown}"}, "What is {it}?"])])
    [message] = to_messages(template.format_messages(shown=RED.data_url, it="this"))
    assert message.parts == (RED, "What is this?")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (HumanMessage([{"type": "image", "url": "https://localhost/a.png"}]), "URLs are never fetched"),
        (HumanMessage([{"type": "image", "source_type": "url", "url": "http://a"}]), "URLs are never fetched"),
        (HumanMessage([{"type": "image_url", "image_url": {"url": "http://a"}}]), "URLs are never fetched"),
        (HumanMessage([{"type": "image_url", "image_url": "/etc/passwd"}]), "URLs are never fetched"),
        (HumanMessage([{"type": "image_url", "image_url": {"url": RED.data_url, "detail": "low"}}]), "detail must be"),
        (HumanMessage([{"type": "input_image", "image_url": RED.data_url, "detail": "high"}]), "detail must be"),
        (HumanMessage([{"type": "image", "file_id": "file-1"}]), "file_id"),
        (HumanMessage([{"type": "image", "source_type": "id", "id": "file-1"}]), "file_id"),
        (HumanMessage([{"type": "image", "source": {"type": "file", "file_id": "file-1"}}]), "file_id"),
        (HumanMessage([{"type": "image", "base64": "%"}]), "is not base64"),
        (HumanMessage([{"type": "image"}]), "has no image"),
        (HumanMessage([{"type": "image_url", "image_url": {}}]), "must be a string"),
        (HumanMessage([{"type": "audio", "base64": "AAAA"}]), "'audio', but the models do not read sound"),
        (HumanMessage([{"type": "input_audio", "input_audio": {}}]), "do not read sound"),
        (HumanMessage([{"type": "video", "base64": "AAAA"}]), "do not read video"),
        (HumanMessage([{"type": "file", "base64": "AAAA"}]), "documents such as PDF"),
        (HumanMessage([{"type": "sculpture"}]), "only text and, from users, images"),
        (ToolMessage([LANGCHAIN[0]], tool_call_id="1"), "append a HumanMessage"),
        (SystemMessage([LANGCHAIN[5]]), "'system' has an image"),
        (AIMessage([LANGCHAIN[0]]), "'ai' has an image"),
    ],
)
def test_other_langchain_blocks_are_refused(message, told):
    with pytest.raises(RequestError, match=told):
        to_messages([message])


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "red.png"
    file.write_bytes(RED.data)
    return file


def test_llamaindex_blocks_become_images(path):
    block = ImageBlock(image=RED.data)
    blocks = [
        block,
        ImageBlock.model_validate_json(block.model_dump_json()),
        ImageBlock(image=RED.data, image_mimetype="image/png", detail="auto"),
        ImageBlock(image=BASE64.encode()),
        ImageBlock(image=io.BytesIO(RED.data)),
        ImageBlock.model_construct(image=RED.data, path=None, url=None, detail=None),
        ImageBlock(path=path),
        ImageBlock(url=RED.data_url),
    ]
    for block in blocks:
        message = LlamaMessage(role="user", blocks=[TextBlock(text="What"), block, TextBlock(text="is this?")])
        [converted] = convert_messages([message])
        assert converted.parts == ("What", RED, "\nis this?")
        assert converted.content == message.content


def test_llamaindex_templates_and_documents_become_images(path, monkeypatch):
    # The template's filter opens files of the working directory only.
    monkeypatch.chdir(path.parent)
    template = RichPromptTemplate("{% chat role='user' %}{{ path | image }}What is {{ it }}?{% endchat %}")
    [converted] = convert_messages(template.format_messages(path=str(path), it="this"))
    assert converted.images[0].image == RED
    assert converted.content.strip() == "What is this?"
    message = LlamaMessage(role="user", content="What?", additional_kwargs={"images": [ImageDocument(image=BASE64)]})
    assert convert_messages([message])[0].parts == ("What?", RED)
    cited = CitableBlock(title="A", source="B", content=[TextBlock(text="a"), ImageBlock(image=RED.data)])
    assert convert_messages([LlamaMessage(role="user", blocks=[cited])])[0].parts == ("a", RED)


@pytest.mark.parametrize(
    ("role", "block", "told"),
    [
        ("user", ImageBlock(url="https://localhost/a.png"), "URLs are never fetched"),
        ("user", ImageBlock(url="file:///etc/passwd"), "URLs are never fetched"),
        ("user", ImageBlock(image=RED.data, detail="high"), "detail must be 'auto'"),
        ("user", ImageBlock(image=b"abc"), "is not PNG"),
        ("user", ImageBlock(image=io.BytesIO()), "zero bytes"),
        ("user", ImageBlock(), "has no image"),
        ("user", AudioBlock(audio=b"abc", format="wav"), "has a AudioBlock"),
        ("user", DocumentBlock(data=b"%PDF-1.4", title="a"), "has a DocumentBlock"),
        ("system", ImageBlock(image=RED.data), "role 'system' has an ImageBlock"),
        ("tool", ImageBlock(image=RED.data), "role 'tool' has an ImageBlock"),
        ("assistant", ImageBlock(image=RED.data), "role 'assistant' has an ImageBlock"),
    ],
)
def test_other_llamaindex_blocks_are_refused(role, block, told):
    with pytest.raises(RequestError, match=told):
        convert_messages([LlamaMessage(role=role, blocks=[block])])


@pytest.mark.filterwarnings("ignore:gate=")
def test_models_of_text_refuse_images(ensemble):
    message = LlamaMessage(role="user", blocks=[ImageBlock(image=RED.data), TextBlock(text="What is this?")])
    own = LlamaGaC(ensemble=ensemble, messages_to_prompt=lambda messages: str(messages[0].content))
    with pytest.raises(RequestError, match="messages_to_prompt cannot show images"):
        own.chat([message])
    [prompt] = to_messages([HumanMessage([LANGCHAIN[0], "What is this?"])])
    for call in (
        lambda: LlamaGaC(ensemble=ensemble).chat([message]),
        lambda: ChatGaC(ensemble=ensemble).invoke([HumanMessage([LANGCHAIN[0], "What is this?"])]),
        lambda: ChatGaC(ensemble=ensemble).get_num_tokens_from_messages([HumanMessage([LANGCHAIN[0]])]),
        lambda: ensemble.count_tokens([prompt]),
        lambda: ensemble.generate([prompt]),
    ):
        with pytest.raises(RequestError, match="none of the members"):
            call()
