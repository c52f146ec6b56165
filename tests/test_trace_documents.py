"""Traces of answers from documents: letters, votes, citations, the page and what the command prints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import EMBEDDED
from rich.console import Console
from test_trace import check_page
from traces import HOSTILE, hostile_trace
from typer.testing import CliRunner

from gac_core import Citation, Doubt, Grammar, MemberToken, TokenStats, Vote
from gac_core.cli import app
from gac_core.cli.trace_display import show_documents
from gac_core.trace import Trace, trace
from gac_core.trace.documents import documents_of, letter
from gac_core.trace.tokens import token_views

IDS = ("<i>x</i>", "\u202ey\nz")


def test_letters():
    assert [letter(index) for index in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cited() -> Trace:
    """A trace of hostile tokens and names, with votes in turn for two documents of such ids."""
    found = hostile_trace()
    names = list(found.output.stats.settings.weights)
    entries = [
        replace(
            stats,
            votes=() if stats.forced else tuple(
                Vote(name, names[0], share, share)
                for name, share in zip(IDS, (0.7, 0.3) if place % 3 else (0.2, 0.8), strict=True)
            ),
            members=tuple(replace(member, document=IDS[0]) for member in stats.members),
        )
        for place, stats in enumerate(found.output.token_stats)
    ]  # fmt: skip
    doubt = Doubt(agreement=0.5, entropy=1.0, share=0.6, lift=-0.25, not_in_documents=0.125)
    citation = Citation(0, 20, found.output.text[:20], IDS[1], 0.8, {IDS[0]: 0.2, IDS[1]: 0.8}, {names[0]: 1.0}, doubt)
    output = replace(
        found.output,
        token_stats=tuple(entries),
        citations=(citation,),
        document_shares={IDS[0]: 0.4, IDS[1]: 0.6},
        doubt=doubt,
    )
    texts = dict.fromkeys(IDS, HOSTILE[0].decode())
    return Trace(found.prompt, output, {}, texts)


def test_the_page_shows_documents_and_has_no_effect(cited):
    page = check_page(cited.to_html())
    assert "Citations" in page.text
    assert "<i>x</i>" in page.text
    assert "\u202e" not in page.text
    assert "best document60%not in documents12%" in page.text.replace("\n", "")
    assert "agreement 50%, entropy 1.00 nats, lift -0.25 nats, not in the documents 12%" in page.text
    assert "document A by" in next(values["aria-label"] for _, values in page.elements if values.get("id") == "t2")
    assert "by-v" in page.ids
    assert "by-v" not in check_page(hostile_trace().to_html()).ids


def test_tokens_know_the_document_that_carried_them(cited):
    # The larger share comes first.
    assert [each.id for each in documents_of(cited.output).values()] == [IDS[1], IDS[0]]
    views = token_views(cited.output, list(cited.output.stats.settings.weights))
    for place, view in enumerate(views):
        wanted = None if view.kind == "forced" else IDS[0] if place % 3 else IDS[1]
        assert (view.document and view.document.id) == wanted
        assert [each.share for each in view.votes] == sorted((each.share for each in view.votes), reverse=True)


def test_several_voices_of_one_member_share_its_place(cited):
    members = tuple(MemberToken("m", b"b", 0.5, 0.5, document) for document in IDS)
    tied = TokenStats(b"b", 0.5, 1.0, 0.0, members=members)
    output = replace(cited.output, tokens=(b"b",), text="b", token_stats=(tied,))
    (view,) = token_views(output, ["m"])
    assert (view.mask, view.proposers) == (1, ("m",))
    assert view.decision == "All 2 voices proposed it."


def test_documents_of_a_text_that_a_grammar_forced(ensemble):
    texts = ["The lake is deep.", "The bridge is old."]
    found = trace(ensemble, "{document} It is", documents=texts, alone=False, grammar=Grammar.regex("Zebra(QQ)?"))
    *forced, end = found.output.token_stats
    assert all(stats.forced for stats in forced)
    # Only the choice to end was voted on, and that is no part of the text.
    assert end.votes
    assert found.output.document_shares == {}
    assert {each.id: each.share for each in documents_of(found.output).values()} == {"1": 0.0, "2": 0.0}
    check_page(found.to_html())


def test_json_has_votes_and_citations(cited):
    values = json.loads(cited.to_json())
    assert values["version"] == 1
    assert values["documents"] == dict(cited.documents)
    assert values["answer"]["citations"][0]["document"] == IDS[1]
    assert values["answer"]["gac"]["token_stats"][0]["votes"][0]["member"]
    assert "documents" not in json.loads(hostile_trace().to_json())


def test_the_terminal_shows_runs_of_documents(cited):
    tokens = (b"One ", b"\x1b[31m", b"two.")
    entries = [replace(stats, token=token) for token, stats in zip(tokens, cited.output.token_stats[3:6], strict=True)]
    output = replace(cited.output, tokens=tokens, text="One \x1b[31mtwo.", token_stats=tuple(entries))
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as capture:
        show_documents(replace(cited, output=output), console)
    first, *others = capture.get().splitlines()
    assert first == "[A]One [B]<U+001B>[31mtwo."
    assert others[1].startswith("[A] <U+202E>y z 60%")
    assert others[3].startswith("[A 80%] ")
    assert "\x1b" not in capture.get()


def test_the_command_traces_documents(tmp_path, caplog):
    paths = [tmp_path / name for name in ("one.txt", "two.txt")]
    for path, text in zip(paths, ("The Torno Bridge is in Halkus.", "The sea is deep."), strict=True):
        path.write_text(text)
    arguments = [*EMBEDDED[:2], "--max-tokens", "4", "-o", tmp_path / "a.json", "--prompt", "{document} Where is it?"]
    arguments += [part for path in paths for part in ("--document", path)]
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert values["documents"] == {str(path): path.read_text() for path in paths}
    assert set(values["answer"]["document_shares"]) == set(values["documents"])
    assert {vote["document"] for stats in values["answer"]["gac"]["token_stats"] for vote in stats["votes"]} == {
        *values["documents"]
    }
    assert set(values["alone"]) == {"ash", "birch"}
    assert "gate=" not in caplog.text
    assert all(set(each["document_shares"]) == set(values["documents"]) for each in values["alone"].values())
    assert f"[A] {max(values['answer']['document_shares'].items(), key=lambda pair: pair[1])[0]}" in result.output
