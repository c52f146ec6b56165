"""``gac trace``: writes a page about one answer, with what each member proposed at every token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gac_core.chat.conversation import Prompt
from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import configuration
from gac_core.cli.evaluation_options import Models
from gac_core.cli.files import read_text, write_text
from gac_core.cli.requests import request_settings
from gac_core.ensemble import Ensemble
from gac_core.errors import RequestError
from gac_core.sampling import SamplingParams
from gac_core.trace import trace as traced

_FORMATS = (".html", ".json")


def trace(
    models: Models,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .html, or .json.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with the prompt.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, by the members' chat templates.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: a system message.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="0 to 1: the gate decides alone at or above it; off: no threshold.")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="Name of the gate.")] = None,
    weights: Annotated[str | None, typer.Option(help="For example 1:2:4, one number per member.")] = None,
    combine: Annotated[str | None, typer.Option(help="How distributions are combined.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer, in tokens, at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    alone: Annotated[bool, typer.Option(help="Whether each member also answers alone.")] = True,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. Default: as stored.")] = None,
) -> None:
    """Write a page about one answer: each token's confidence, and what each member proposed."""
    with reported("trace"):
        asked = _prompt(prompt, file, chat, system)
        if output.suffix not in _FORMATS:
            raise RequestError(f"the file of -o must end in .html or .json, not {output.suffix or 'nothing'!r}")
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        with Ensemble.from_config(configuration(models, dtype)) as ensemble:
            settings = request_settings(ensemble.names, weights, threshold, gate, combine)
            found = traced(ensemble, asked, params, alone=alone, **settings)
        write_text("-o", output, found.to_html() if output.suffix == ".html" else found.to_json())
    typer.echo(f"wrote {output}", err=True)


def _prompt(prompt: str | None, file: Path | None, chat: bool, system: str | None) -> Prompt:
    if (prompt is None) == (file is None):
        raise RequestError("give the prompt with either --prompt or --file")
    if system is not None and not chat:
        raise RequestError("--system is a message of a conversation; give --chat too")
    text = prompt if prompt is not None else read_text("--file", Path(str(file)))
    if not chat:
        return text
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
