"""``gac chat``: commands, the conversation, colours, and the program in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from conftest import EMBEDDED, ROOT
from rich.console import Console
from typer.testing import CliRunner

from gac_core import GaCError, OutputChunk, RequestError, SamplingParams, TokenStats
from gac_core.cli import app
from gac_core.cli.chat_commands import COMMANDS, Command, parse_line
from gac_core.cli.chat_display import Display, StreamedConfidence
from gac_core.cli.chat_session import ChatSession

ASK = "In which town is the Torno Bridge?"

# ---- commands


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("hello / there", "hello / there"),
        ("", ""),
        ("//etc/hosts", "/etc/hosts"),
        ("/stats", Command("stats")),
        ("/weights  1:2:4 ", Command("weights", "1:2:4")),
        ("/weights\t1:2:4", Command("weights", "1:2:4")),
        ("/system You are brief. /ok", Command("system", "You are brief. /ok")),
    ],
)
def test_lines_are_messages_or_commands(line, parsed):
    assert parse_line(line) == parsed


@pytest.mark.parametrize("line", ["/wieghts 1:2", "/", "/Stats", "/ stats x"])
def test_unknown_commands_name_what_is_allowed(line):
    with pytest.raises(RequestError) as caught:
        parse_line(line)
    assert "unknown command" in str(caught.value) or "takes no value" in str(caught.value)
    if "unknown" in str(caught.value):
        assert all(f"/{name}" in str(caught.value) for name in COMMANDS)


# ---- the conversation


@pytest.fixture
def session(ensemble):
    return ChatSession(ensemble, SamplingParams(max_tokens=6))


def say(session, text):
    return "".join(chunk.text for chunk in session.ask(text))


def test_a_conversation_is_remembered(ensemble, session):
    session.run(Command("system", "Answer briefly."))
    first = say(session, ASK)
    turns = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": ASK}]
    assert first == ensemble.generate(turns, max_tokens=6).text
    second = say(session, "And who built it?")
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "And who built it?"}]
    assert second == ensemble.generate(turns, max_tokens=6).text
    assert [message.role for message in session.last.prompt] == ["system", "user", "assistant", "user"]
    assert session.run(Command("reset")) == "the conversation is empty"
    assert session.run(Command("system", "none")) == "system message: none"
    assert say(session, ASK) == ensemble.generate(turns[1:2], max_tokens=6).text


def test_a_stopped_answer_is_kept_as_far_as_it_was_shown(ensemble, session):
    with closing(session.ask(ASK)) as chunks:
        shown = "".join(next(chunks).text for _ in range(3))
    assert [message.content for message in session.messages] == [ASK, shown]
    assert session.last is None
    deadline = time.monotonic() + 10
    while ensemble.health().requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ensemble.health().requests


def test_a_failed_message_is_forgotten(session):
    with pytest.raises(RequestError):
        say(session, "x \udc80")
    assert session.messages == []


def test_settings_apply_to_the_next_answer(session):
    run = session.run
    assert run(Command("weights")) == "weights: default"
    assert run(Command("weights", "1:2:4")) == "weights: ash 1, birch 2, cedar 4"
    assert run(Command("threshold", "0.9")) == "threshold: 0.9"
    assert run(Command("gate", "birch")) == "gate: birch"
    assert run(Command("combine", "geometric")) == "combine: geometric"
    say(session, ASK)
    settings = session.last.output.stats.settings
    assert (settings.threshold, settings.gate, settings.combine) == (0.9, "birch", "geometric")
    assert settings.weights == pytest.approx({"ash": 1 / 7, "birch": 2 / 7, "cedar": 4 / 7})
    assert run(Command("threshold", "off")) == "threshold: off"
    assert session.params.threshold is None
    assert run(Command("gate", "default")).endswith("(default)")
    assert run(Command("combine", "default")) == "combine: arithmetic (default)"
    assert "threshold: off" in run(Command("threshold", "default"))
    assert session.params.threshold == "default"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Command("weights", "1:2"), "3 numbers joined by colons"),
        (Command("weights", "0:0:0"), "one of them must be above 0"),
        (Command("threshold", "1.5"), "number from 0 to 1, or off, not '1.5'"),
        (Command("gate", "oak"), "members are: ash, birch, cedar"),
        (Command("combine", "sum"), "'arithmetic'"),
        (Command("stats"), "no finished answer"),
        (Command("trace", "a.html"), "no finished answer"),
        (Command("trace"), "name of a file"),
    ],
)
def test_wrong_values_change_nothing(session, command, message):
    before = session.params
    with pytest.raises(GaCError, match=re.escape(message)):
        session.run(command)
    assert session.params == before


def test_the_last_answer_is_described_and_traced(session, tmp_path):
    say(session, ASK)
    session.run(Command("gate", "birch"))
    stats = session.last.output.stats
    lines = session.run(Command("stats")).splitlines()
    assert f"confidence  {stats.confidence:.0%}" in lines
    assert any(line.startswith(f"ash: weight 33%, {stats.members['ash'].forwards} forwards") for line in lines)
    path = tmp_path / "turn.html"
    assert session.run(Command("trace", str(path))) == f"wrote {path}"
    assert ASK in path.read_text(encoding="utf-8")
    with pytest.raises(RequestError, match="must end in"):
        session.run(Command("trace", "turn"))


# ---- colours


def shown(chunks, terminal=True) -> str:
    out = io.StringIO()
    colours = "truecolor" if terminal else "auto"
    display = Display(Console(file=out, force_terminal=terminal, color_system=colours, width=40))
    display.begin()
    for chunk in chunks:
        display.show(chunk)
    return out.getvalue()


def chunk(text, *tokens) -> OutputChunk:
    return OutputChunk(text, token_stats=tuple(TokenStats(token, sure) for token, sure in tokens))


def test_each_token_has_the_colour_of_its_confidence():
    text = shown([chunk("sure", (b"sure", 0.95)), chunk(" not\n", (b" not\n", 0.2))])
    assert text.startswith("sure\x1b[")
    assert "48;2;232;115;26m not\x1b[0m\n" in text
    assert shown([chunk("sure not", (b"sure", 0.95), (b" not", 0.1))], terminal=False) == "sure not"


def test_parts_of_a_text_are_those_of_their_tokens():
    smile = "\U0001f600".encode()
    stream = StreamedConfidence()
    stream.push([TokenStats(b"<think>", 0.9), TokenStats(b"ab", 0.8), TokenStats(b"c" + smile[:2], 0.7)])
    assert stream.split("ab") == [("ab", 0.8)]
    stream.push([TokenStats(smile[2:] + b"d", 0.6), TokenStats(b"", 1.0)])
    assert stream.split("c\U0001f600d") == [("c", 0.7), ("\U0001f600d", 0.6)]
    # Invalid bytes were replaced, so that the text is not that of the tokens.
    stream.push([TokenStats(b"\xff", 0.3), TokenStats(b"e", 0.5)])
    assert stream.split("\ufffde") == [("\ufffde", 0.3)]
    assert stream.split("late") == [("late", 0.3)]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_control_sequence_of_a_text_reaches_the_terminal(terminal):
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m\rover\x08\u202eevil"
    text = shown([chunk(hostile, (hostile.encode(), 0.95))], terminal)
    assert text == "<U+001B>[2J<U+001B>]0;title<U+0007><U+009B>31m<U+000D>over<U+0008><U+202E>evil"


# ---- the program


def run(text, *arguments):
    return CliRunner().invoke(app, ["chat", *EMBEDDED, "--max-tokens", "4", *arguments], input=text)


def test_a_pipe_gets_plain_text(ensemble, tmp_path):
    result = run(f"{ASK}\n/foo\n\n/trace {tmp_path}/a.json\n/quit\nnever\n", "--threshold", "0.5", "--gate", "ash")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:] == [f"wrote {tmp_path}/a.json"]
    assert "\x1b" not in result.stdout
    assert "unknown command '/foo'" in result.stderr
    assert (tmp_path / "a.json").exists()


def test_members_without_a_template_are_named(tmp_path):
    from conftest import copied_pair

    model, tokenizer = copied_pair(EMBEDDED[0])
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    members = ["chat", EMBEDDED[1], str(tmp_path / "base"), "--max-tokens", "2"]
    refused = CliRunner().invoke(app, members, input="hello\n")
    assert refused.exit_code == 2
    assert "no chat template: 'base'; give --plain" in refused.output
    answered = CliRunner().invoke(app, [*members, "--plain"], input="hello\n")
    assert answered.exit_code == 0, answered.output


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, wanted: str, seconds: float = 60.0) -> str:
        """Reads until a text appears, and returns everything up to it."""
        deadline = time.monotonic() + seconds
        while wanted.encode() not in self.seen:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 65536)
        head, self.seen = self.seen.split(wanted.encode(), 1)
        return (head + wanted.encode()).decode(errors="replace")


@contextmanager
def terminal(*arguments):
    master, slave = pty.openpty()
    code = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "from gac_core.cli import app; app()"
    )
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    try:
        yield Terminal(master), process
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.slow
def test_a_terminal_session():
    """Colours; Ctrl-C stops an answer and not the program; Ctrl-D leaves."""
    with terminal("chat", *EMBEDDED, "--max-tokens", "900", "--temperature", "50") as (screen, process):
        head = screen.until("\n> ")
        assert "ash, birch, cedar; /help" in head
        assert "below 30%" in head
        screen.type(f"{ASK}\r")
        screen.until("\x1b[38;2;21;21;21;48;2;232;115;26m")
        screen.type("\x03")
        text = screen.until("\n> ")
        assert "stopped" in text
        assert not re.search(r"\x1b(?!\[[0-9;?]*[a-zA-Z])", text)
        screen.type("/gate oak\r")
        assert "members are: ash, birch, cedar" in screen.until("\n> ")
        time.sleep(0.5)
        screen.type("\x03")
        screen.until("Ctrl-D leaves")
        screen.until("> ")
        screen.type("\x04")
        assert process.wait(30) == 0
