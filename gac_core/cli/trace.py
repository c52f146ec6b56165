"""``gac trace``: writes a page about one answer, with what each member proposed at every token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gac_core.chat.conversation import Prompt
from gac_core.cli import request_options as options
from gac_core.cli.document_files import read_documents
from gac_core.cli.errors import reported
from gac_core.cli.files import read_text, write_text
from gac_core.cli.opening import opened
from gac_core.cli.requests import request_settings
from gac_core.cli.trace_display import show_documents
from gac_core.errors import RequestError, quote
from gac_core.sampling import SamplingParams
from gac_core.trace import Trace
from gac_core.trace import trace as traced

_FORMATS = (".html", ".json")


def trace(
    models: options.Models,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .html, or .json.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with the prompt.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, by the members' chat templates.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: a system message.")] = None,
    document: options.DocumentFiles = None,
    documents: options.DocumentLines = None,
    threshold: options.Threshold = None,
    gate: options.Gate = None,
    weights: options.Weights = None,
    combine: options.Combine = None,
    combine_documents: options.CombineDocuments = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer, in tokens, at most.", min=1)] = 256,
    temperature: options.Temperature = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    alone: Annotated[bool, typer.Option(help="Whether each member also answers alone.")] = True,
    plain: options.Plain = False,
    dtype: options.Dtype = None,
) -> None:
    """Write a page about one answer: each token's confidence, and what each member proposed."""
    with reported("trace"):
        asked = _prompt(prompt, file, chat, system)
        given = read_documents(document, documents)
        check_format("-o", output)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        with opened(models, dtype, plain) as ensemble:
            settings = request_settings(ensemble.names, weights, threshold, gate, combine, combine_documents)
            found = traced(ensemble, asked, params, documents=given, alone=alone, **settings)
        write_trace("-o", output, found)
        if given is not None:
            show_documents(found, Console(highlight=False))
    typer.echo(f"wrote {output}", err=True)


def check_format(option: str, path: Path) -> None:
    """Raises if the name of a file for a trace has another ending than ``.html`` or ``.json``.

    Args:
        option: The option or command that names it, for the error.
        path: The file.

    Raises:
        RequestError: It has another ending.
    """
    if path.suffix not in _FORMATS:
        raise RequestError(f"the file of {option} must end in .html or .json, not {quote(path.suffix or str(path))}")


def write_trace(option: str, path: Path, found: Trace) -> None:
    """Writes a trace in the format that the name of a file tells; arguments and errors as in `write_text`."""
    write_text(option, path, found.to_html() if path.suffix == ".html" else found.to_json())


def _prompt(prompt: str | None, file: Path | None, chat: bool, system: str | None) -> Prompt:
    if (prompt is None) == (file is None):
        raise RequestError("give the prompt with either --prompt or --file")
    if system is not None and not chat:
        raise RequestError("--system is a message of a conversation; give --chat too")
    text = prompt if prompt is not None else read_text("--file", Path(str(file)))
    if not chat:
        return text
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
