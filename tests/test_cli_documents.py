"""Documents in ``gac trace`` and ``gac chat``: from files, at the place in the prompt, with citations."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from conftest import EMBEDDED
from typer.testing import CliRunner

from gac_core import Document, DocumentPrompt, RequestError, SamplingParams
from gac_core.cli import app
from gac_core.cli.chat_commands import Command
from gac_core.cli.chat_session import DOCUMENT_SYSTEM, ChatSession
from gac_core.cli.document_files import read_documents

TEXTS = ("The Torno Bridge stands in Halkus.", "The Silver Inn stands in Marwin.", "Entry costs four crowns.")
QUESTION = "In which town is the Torno Bridge?"
MODELS = [str(model) for model in EMBEDDED[:2]]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files with `TEXTS` in the working directory: the first as a text, the others as JSON lines."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXTS[0], encoding="utf-8")
    lines = [json.dumps(TEXTS[1]), "", json.dumps({"text": TEXTS[2], "id": None})]
    Path("b.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_documents_of_both_options(files):
    assert read_documents(None, None) is None
    assert read_documents([Path("a.txt")], Path("b.jsonl")) == [
        Document(TEXTS[0], "a.txt"), Document(TEXTS[1], "b.jsonl:1"), Document(TEXTS[2], "b.jsonl:3"),
    ]  # fmt: skip
    Path("b.jsonl").write_text('{"text": "x", "id": "y", "score": 0.5}\n', encoding="utf-8")
    assert read_documents(None, Path("b.jsonl")) == [Document("x", "y", 0.5)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ('"a"\n{', "line 2 of 'b.jsonl'"),
        ('"a"\n3', "line 2 of 'b.jsonl' .* non-empty string, not 3"),
        ('{"txt": "a"}', "line 1 of 'b.jsonl' .*'txt'"),
        ('{"text": "a", "score": "1"}', "line 1 of 'b.jsonl' .*score"),
    ],
)
def test_wrong_lines_are_named(files, content, words):
    Path("b.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=words):
        read_documents(None, Path("b.jsonl"))


@pytest.mark.parametrize(("name", "words"), [("c.txt", "cannot read 'c.txt'"), ("empty", "is empty")])
def test_wrong_files_are_named(files, name, words):
    Path("empty").touch()
    with pytest.raises(RequestError, match=words):
        read_documents([Path(name)], None)


def test_a_trace_of_an_answer_from_documents(files, caplog):
    options = ["--document", "a.txt", "--documents", "b.jsonl", "--combine-documents", "confidence"]
    prompt = f"{{document}}\n\nQuestion: {QUESTION}"
    result = CliRunner().invoke(
        app, ["trace", *MODELS, "--chat", "--prompt", prompt, *options, "--max-tokens", "8", "-o", "t.json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(Path("t.json").read_text(encoding="utf-8"))
    assert found["documents"] == {"a.txt": TEXTS[0], "b.jsonl:1": TEXTS[1], "b.jsonl:3": TEXTS[2]}
    assert found["answer"]["gac"]["combine_documents"] == "confidence"
    assert found["answer"]["citations"][0]["document"] == "a.txt"
    # A member alone is its own gate, which is no mistake of the user.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_each_message_of_a_chat_is_answered_from_the_documents(ensemble, files):
    documents = read_documents([Path("a.txt")], Path("b.jsonl"))
    session = ChatSession(ensemble, SamplingParams(max_tokens=6), documents=documents)
    asked = f"{QUESTION} Not {{document}}."
    first = "".join(chunk.text for chunk in session.ask(asked))
    system = {"role": "system", "content": DOCUMENT_SYSTEM.replace("{document}", "<here>")}
    turns = [system, {"role": "user", "content": asked}]
    output = ensemble.generate(DocumentPrompt(turns, documents, place="<here>"), max_tokens=6)
    assert first == output.text != ""
    "".join(chunk.text for chunk in session.ask("And who built it?"))
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "And who built it?"}]
    output = ensemble.generate(DocumentPrompt(turns, documents, place="<here>"), max_tokens=6)
    assert session.last.output.text == output.text
    assert set(session.last.output.document_shares) == {"a.txt", "b.jsonl:1", "b.jsonl:3"}
    stats = session.run(Command("stats"))
    assert "documents   " in stats
    assert "doubt       agreement" in stats
    session.run(Command("trace", "t.json"))
    assert "a.txt" in json.loads(Path("t.json").read_text(encoding="utf-8"))["documents"]
    with pytest.raises(RequestError, match=r"must contain \{document\} once"):
        session.run(Command("system", "Answer briefly."))
    assert session.run(Command("system", "Read: {document}")) == "system message: Read: {document}"


def test_a_chat_without_a_place_for_documents_is_refused(files):
    result = CliRunner().invoke(app, ["chat", *MODELS, "--document", "a.txt", "--system", "Answer briefly."])
    assert result.exit_code == 2
    assert "must contain {document} once" in result.stderr
