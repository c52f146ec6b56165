"""GaCLLM converts no values: what has another type is an error of the library that shows the value as given."""

from __future__ import annotations

import pytest
import torch
from conftest import EMBEDDED
from llama_index.core.base.llms.types import ChatMessage

from gac_core import ConfigError, GaCError, RequestError, use_threshold
from gac_llamaindex import GaCLLM

PROMPT = "Where is the Torno Bridge?"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"enable_thinking": 1}, "enable_thinking cannot be 1"),
        ({"close_structures": "no"}, "close_structures cannot be 'no'"),
        ({"raise_on_structured_prediction_failure": 0}, "raise_on_structured_prediction_failure cannot be 0"),
        ({"max_queue": "5"}, "max_queue must be an integer, not '5'"),
        ({"max_batch_size": 2.0}, r"max_batch_size must be an integer, not 2\.0"),
        ({"cache_gib": True}, "cache_gib must be a number, not True"),
        ({"deterministic": 1}, "deterministic must be True or False, not 1"),
        ({"dtype": torch.bfloat16}, 'dtype cannot be torch.bfloat16.*"bfloat16"'),
        ({"tool_format": "xml"}, "tool_format cannot be 'xml'.*'native'"),
    ],
)
def test_wrong_types_of_fields_are_errors_of_the_library(fields, told):
    with pytest.raises(ConfigError, match=told):
        GaCLLM(EMBEDDED[:1], **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"threshold": True}, "threshold must be a number, not True"),
        ({"threshold": "0.5"}, r"threshold must be a number, not '0\.5'"),
        ({"threshold": -1}, "threshold must be at least 0 and at most 1, not -1$"),
        ({"weights": ["1", 2, 1]}, "each of weights must be a number, not '1'"),
        ({"weights": {"ash": True}}, r"weights\['ash'\] must be a number, not True"),
        ({"max_tokens": 5.0}, r"max_tokens must be an integer, not 5\.0"),
        ({"max_tokens": None}, "max_tokens must be an integer, not None"),
        ({"drafts": 1}, "drafts must be True or False, not 1"),
        ({"parse_special": 1}, "parse_special must be True or False, not 1"),
        ({"stop": 5}, "stop must be a list of strings, not 5"),
        ({"gate": 3}, "gate must be a non-empty string, not 3"),
    ],
)
def test_defaults_of_requests_are_not_converted(ensemble, fields, told):
    with pytest.raises(RequestError, match=told):
        GaCLLM(ensemble=ensemble, **fields)
    with pytest.raises(RequestError, match=told), use_threshold(0.5):
        GaCLLM(EMBEDDED, **fields)


@pytest.mark.parametrize("given", [{"stop": 5}, {"max_tokens": None}, {"temperature": "hot"}, {"logprobs": "all"}])
def test_wrong_types_of_arguments_are_errors_of_the_library(ensemble, given):
    llm = GaCLLM(ensemble=ensemble)
    for ask in (llm.complete, lambda prompt, **kwargs: llm.chat([ChatMessage(prompt)], **kwargs)):
        with pytest.raises(GaCError, match=next(iter(given))):
            ask(PROMPT, **given)
