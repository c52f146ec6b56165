"""Doubt and citations of whole requests."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest
import yaml
from conftest import QUESTION

from gac_core import Doubt, Ensemble, Grammar, as_metadata, fold
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


ASK = "Text: {document}\nQuestion: In which town is the Torno Bridge?\nAnswer:"
TEXTS = ["The Torno Bridge is in Halkus.", "The sea is deep. Ships sail on it.", "Halkus is a town."]


@pytest.fixture(scope="module")
def cited(ensemble):
    return ensemble.generate(ASK, documents=TEXTS, max_tokens=24, token_stats=True)


def test_answers_from_documents_are_cited(ensemble, cited):
    assert set(cited.document_shares) == {"1", "2", "3"}
    assert sum(cited.document_shares.values()) == pytest.approx(1)
    assert cited.doubt.share == max(cited.document_shares.values())
    assert [cited.text[each.start : each.end] for each in cited.citations] == [each.text for each in cited.citations]
    assert "".join("".join(each.text for each in cited.citations).split()) == "".join(cited.text.split())
    for citation in cited.citations:
        assert citation.share == citation.shares[citation.document] == max(citation.shares.values())
        assert set(citation.members) == set(ensemble.names)
        assert sum(citation.members.values()) == pytest.approx(1)
        assert None not in (citation.doubt.entropy, citation.doubt.lift, citation.doubt.logprob)
    logs = dict.fromkeys(cited.document_shares, 0.0)
    for stats in cited.token_stats[: len(cited.tokens)]:
        for name in logs:
            own = [vote.probability for vote in stats.votes if vote.document == name]
            # The members have equal weights, and so have the documents.
            logs[name] += math.log(max(fmean(own), 1e-30))
    odds = {name: math.exp(value - max(logs.values())) for name, value in logs.items()}
    assert cited.document_shares == pytest.approx({name: value / sum(odds.values()) for name, value in odds.items()})


def test_citations_do_not_depend_on_statistics_order_and_streaming(ensemble, cited):
    streamed = fold(ensemble.stream(ASK, documents=TEXTS, max_tokens=24))
    assert streamed.token_stats is None
    # Reused prefixes round differently.
    assert streamed.document_shares == pytest.approx(cited.document_shares, rel=1e-4)
    places = [(each.start, each.end, each.document) for each in cited.citations]
    assert [(each.start, each.end, each.document) for each in streamed.citations] == places
    documents = [{"text": text, "id": str(number)} for number, text in enumerate(TEXTS, 1)]
    turned = ensemble.generate(ASK, documents=documents[::-1], max_tokens=24)
    assert turned.document_shares == pytest.approx(cited.document_shares, rel=1e-4)
    assert [(each.start, each.end, each.document) for each in turned.citations] == places


def test_citations_end_before_a_stop_string(ensemble, cited):
    stop = cited.text[len(cited.text) // 2 :][:3]
    stopped = ensemble.generate(ASK, documents=TEXTS, max_tokens=24, stop=[stop])
    assert stopped.text == cited.text[: cited.text.index(stop)]
    assert stopped.citations[-1].end == len(stopped.text.rstrip())


def test_the_gate_alone_carries_what_it_decides(ensemble):
    alone = ensemble.generate(ASK, documents=TEXTS, max_tokens=8, threshold=0.0)
    (name,) = alone.document_shares
    assert alone.document_shares == {name: 1.0}
    assert alone.citations[0].members == {ensemble.gate: pytest.approx(1.0)}
    assert alone.doubt.agreement is None


def test_absence_is_predicted_where_a_calibration_says_how(ensemble):
    scale = {"mean": 0.5, "deviation": 0.5, "coefficient": -1.0}
    absence = {"version": 1, "features": {"share": scale}, "intercept": 0.0}
    with Ensemble.from_config(replace(ensemble.config, absence=absence)) as calibrated:
        output = calibrated.generate(ASK, documents=TEXTS, max_tokens=4)
        assert output.doubt.not_in_documents == pytest.approx(1 / (1 + math.exp(2 * output.doubt.share - 1)))
        assert all(each.doubt.not_in_documents is not None for each in output.citations)
        assert calibrated.generate(ASK, max_tokens=2).doubt.not_in_documents is None
        assert yaml.safe_load(calibrated.config.to_yaml())["absence"]["features"] == {"share": scale}
