"""``gac chat``: a conversation with an ensemble in the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console

from gac_core.cli import request_options as options
from gac_core.cli.chat_commands import Command, parse_line
from gac_core.cli.chat_display import Display
from gac_core.cli.chat_session import ChatSession, top_documents
from gac_core.cli.document_files import read_documents
from gac_core.cli.errors import reported
from gac_core.cli.opening import opened
from gac_core.cli.requests import request_settings
from gac_core.errors import GaCError, RequestError, listed, quote
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.trace.visible import printable

PROMPT = "> "


def chat(
    models: options.Models,
    system: Annotated[str, typer.Option(help="The system message.")] = "",
    threshold: options.Threshold = None,
    gate: options.Gate = None,
    weights: options.Weights = None,
    combine: options.Combine = None,
    document: options.DocumentFiles = None,
    documents: options.DocumentLines = None,
    combine_documents: options.CombineDocuments = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer, in tokens, at most.", min=1)] = 512,
    temperature: options.Temperature = 0.0,
    plain: options.Plain = False,
    dtype: options.Dtype = None,
) -> None:
    """Talk to an ensemble; each token has the colour of its confidence. /help shows the commands.

    With documents, the system message must contain {document} once.
    """
    _tolerate_any_text()
    with reported("chat"):
        given = read_documents(document, documents)
        with opened(models, dtype, plain) as ensemble:
            settings = request_settings(ensemble.names, weights, threshold, gate, combine, combine_documents)
            params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
            session = ChatSession(ensemble, params, settings, system, given)
            _check_templates(session)
            talk(session, Display(Console(highlight=False, markup=False)))


def _tolerate_any_text() -> None:
    """Reads bytes that are not valid UTF-8 as surrogates, which a request refuses, and writes ``?`` where it must."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_templates(session: ChatSession) -> None:
    without = session.ensemble.without_chat_template(session.params)
    if without:
        raise RequestError(
            f"no chat template: {listed(map(quote, without))}; give --plain (for base models), set chat_template in a "
            "YAML configuration, or give such members the weight 0"
        )


def talk(session: ChatSession, display: Display) -> None:
    """Reads lines and answers them until the input ends or ``/quit``.

    Ctrl-C stops an answer, not the program.
    """
    if display.is_terminal:
        display.line(f"{', '.join(session.ensemble.names)}; /help shows the commands, Ctrl-D leaves", dim=True)
        display.legend()
    for line in lines(display.is_terminal):
        try:
            parsed = parse_line(line)
            if parsed == Command("quit"):
                return
            if isinstance(parsed, Command):
                display.line(session.run(parsed))
            elif parsed.strip():
                answer(session, display, parsed)
        except GaCError as error:
            typer.echo(printable(str(error)), err=True)
        except KeyboardInterrupt:
            display.line()
            typer.echo("stopped", err=True)


def answer(session: ChatSession, display: Display, text: str) -> None:
    """Streams the answer to a message."""
    display.begin()
    output: RequestOutput | None = None
    with closing(session.ask(text)) as chunks:
        for chunk in chunks:
            display.show(chunk)
            output = chunk.output or output
    display.line()
    if output is not None and display.is_terminal:
        display.line(_footer(output), dim=True)


def _footer(output: RequestOutput) -> str:
    """Returns the most important numbers of an answer."""
    stats = output.stats
    parts = [f"{output.usage.completion_tokens} tokens", f"{stats.total_seconds:.1f} s"]
    if stats.confidence is not None:
        parts.append(f"confidence {stats.confidence:.0%}")
    if stats.agreement is not None:
        parts.append(f"agreement {stats.agreement:.0%}")
    if stats.settings.threshold is not None:
        parts.append(f"{stats.share_ensembled:.0%} ensembled")
    parts += [f"{name} {share:.0%}" for name, share in top_documents(output, 1)]
    if output.finish_reason.value == "length":
        parts.append("cut off at the maximum length")
    return ", ".join(parts)


def lines(prompted: bool) -> Iterator[str]:
    """Yields lines of the standard input until it ends.

    Args:
        prompted: Whether the output is a terminal. If both are, lines can be edited. If only the input is one, the
            prompt is written to stderr.
    """
    interactive = sys.stdin.isatty()
    if interactive and prompted:
        _enable_editing()
    while True:
        try:
            if interactive and not prompted:
                typer.echo(PROMPT, nl=False, err=True)
            yield input(PROMPT if interactive and prompted else "")
        except EOFError:
            if interactive:
                typer.echo("", err=True)
            return
        except KeyboardInterrupt:
            typer.echo("\n/quit or Ctrl-D leaves", err=True)


def _enable_editing() -> None:
    """Lets `input` edit lines and recall earlier ones, where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:  # pragma: no cover - depends on how Python was built
        return
