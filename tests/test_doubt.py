"""Doubt and citations of whole requests."""

from __future__ import annotations

from statistics import fmean

import pytest
from conftest import QUESTION

from gac_core import Doubt, Grammar, as_metadata, fold
from gac_core.chat.answer import AnswerParser
from gac_core.engine.output_processor import OutputProcessor
from gac_core.output import FinishReason, OutputChunk, RequestOutput, RequestStats, Usage
from gac_core.token_stats import TokenStats


def test_doubt_of_an_answer_of_several_members(ensemble):
    output = ensemble.generate(QUESTION, max_tokens=8)
    asked = ensemble.generate(QUESTION, max_tokens=8, token_stats=True)
    agreements = [stats.agreement for stats in asked.token_stats if stats.token]
    assert output.token_stats is None
    assert output.doubt == asked.doubt
    assert output.doubt.agreement == pytest.approx(fmean(agreements))
    assert output.doubt.least_agreement == min(agreements)
    assert (output.doubt.share, output.citations, output.document_shares) == (None, (), {})
    values = as_metadata(output)
    assert values["doubt"]["agreement"] == output.doubt.agreement
    assert not {"citations", "document_shares", "tool_call_doubts"} & set(values)
    streamed = list(ensemble.stream(QUESTION, max_tokens=8))
    assert all(chunk.token_stats is None for chunk in streamed)
    assert fold(streamed).doubt == output.doubt


def test_one_member_alone_has_no_doubt(ensemble):
    alone = ensemble.generate(QUESTION, max_tokens=3, threshold=0.0)
    assert alone.doubt is None
    assert "doubt" not in as_metadata(alone)
    assert ensemble.generate(QUESTION, grammar=Grammar.choices(["Halkus"])).doubt is None


@pytest.mark.parametrize("size", [1, 3, 200])
def test_doubt_of_a_tool_call_is_that_of_its_name_and_arguments(size):
    text = 'Wait. <tool_call>{"name": "clock", "arguments": {"zone": "x"}}</tool_call>'
    processor = OutputProcessor(AnswerParser(["clock"]))
    sure, unsure = (range(text.index(part), text.index(part) + len(part)) for part in ('"clock"', '{"zone": "x"}'))
    for at in range(0, len(text), size):
        part = text[at : at + size]
        # A token for each character. The tag and the keys would change the means.
        for place, char in enumerate(part, at):
            agreement = 1.0 if place in sure else 0.5 if place in unsure else 0.0
            stats = TokenStats(char.encode(), 0.5, agreement)
            processor.read(OutputChunk(char, (char.encode(),), token_stats=(stats,)))
    end = RequestOutput("", "", (), FinishReason.STOP, None, Usage(1, 1), RequestStats(), None, None)
    output = processor.read(OutputChunk("", output=end)).output
    (call,) = output.tool_calls
    assert output.text == "Wait."
    assert output.doubt == Doubt(agreement=0.0, least_agreement=0.0)
    count = len(sure) + len(unsure)
    wanted = (len(sure) + 0.5 * len(unsure)) / count
    assert output.call_doubts == {call.id: Doubt(agreement=pytest.approx(wanted), least_agreement=0.5)}
    assert as_metadata(output)["tool_call_doubts"][call.id]["least_agreement"] == 0.5
