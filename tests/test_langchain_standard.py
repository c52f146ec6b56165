"""LangChain's own standard tests for chat models, on the real engine.

Of `ChatGaC` all of them run, with a member that reads images: 55 pass, and five are skipped, which ask for sound,
documents, images in messages of tools, or for a class of LangChain's own (serdes).

Of `ChatOpenAI` with `gac serve` the integration tests run: 46 pass, and four are skipped. `langchain-openai` declares
the same abilities, and also documents and counts of reasoning tokens, which the members lack.
"""

from __future__ import annotations

import functools
import operator

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models
from langchain_tests.unit_tests import ChatModelUnitTests
from server_fixture import served
from standard_members import FOLDERS, train
from vision_members import picture
from vision_models import llava

from gac_core import Ensemble
from gac_core.server.catalog import Catalog
from gac_langchain import ChatGaC


@pytest.fixture(scope="session")
def members(tmp_path_factory):
    """The three members."""
    root = tmp_path_factory.mktemp("standard")
    names = ["first", "second"]
    for seed, (folder, name) in enumerate(zip(FOLDERS, names, strict=True)):
        train(folder, seed, root / name)
    llava(root / "seeing", context=4096)
    # Of random weights: it reads the images of the suite, and hardly changes what the others know by heart.
    folders = [*(str(root / name) for name in names), {"model": str(root / "seeing"), "weight": 1e-4}]
    # Held, so that every model of the suite shares the loaded ensemble.
    with ChatGaC(models=folders, dtype="float32")._ensemble:
        yield folders


@pytest.fixture(scope="session")
def address(members):
    """Where a server of the two members listens."""
    with Ensemble.load(members, dtype="float32") as ensemble, served(Catalog({"gac": ensemble})) as url:
        yield f"{url}/v1"


class Capable:
    """What the members can do with either client."""

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def supports_image_inputs(self):
        return True

    @pytest.fixture(autouse=True)
    def _image(self, monkeypatch):
        # The suite downloads its image; nothing is downloaded here.
        downloaded = httpx.Response(200, content=picture(1).data)
        monkeypatch.setattr(chat_models.httpx, "get", lambda url, timeout: downloaded)

    @property
    def supports_model_override(self):
        return True

    @property
    def enable_vcr_tests(self):
        # Nothing goes over a network; there is nothing to record.
        return True


class Standard(Capable):
    """The parameters of `ChatGaC`, for both suites."""

    @pytest.fixture(autouse=True)
    def _members(self, members):
        self.members = members

    @property
    def chat_model_class(self):
        return ChatGaC

    @property
    def chat_model_params(self):
        return {"models": self.members, "dtype": "float32"}

    @property
    def model_override_value(self):
        return "first"


class TestChatGaCUnit(Standard, ChatModelUnitTests):
    """The unit tests."""

    @property
    def init_from_env_params(self):
        return {"GAC_DEVICE": "cpu"}, {"models": self.members}, {"temperature": 0.0}


class TestChatGaCIntegration(Standard, ChatModelIntegrationTests):
    """The integration tests."""


# Of `langchain-openai` itself: an answer that was parsed is serialized by a class without a type for it, and models of
# pydantic 1 are not supported by the default method.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning")
class TestChatOpenAIIntegration(Capable, ChatModelIntegrationTests):
    """The integration tests of `ChatOpenAI`, whose server is `gac serve`."""

    @pytest.fixture(autouse=True)
    async def _address(self, address):
        with httpx.Client() as client:
            async with httpx.AsyncClient() as async_client:
                self.params = {
                    "model": "gac",
                    "base_url": address,
                    "api_key": "none",
                    "temperature": 0,
                    "max_retries": 0,
                    "stream_usage": True,
                    "http_client": client,
                    "http_async_client": async_client,
                }
                yield

    @pytest.fixture
    def vcr_config(self):
        # Requests reach the server; recordings are of no use.
        return {"ignore_localhost": True}

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return self.params

    @property
    def model_override_value(self):
        return "gac/first"

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream=False):
        model = ChatOpenAI(**self.params)
        model.invoke("Hello")
        return functools.reduce(operator.add, model.stream("Hello")) if stream else model.invoke("Hello")
