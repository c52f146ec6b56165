"""The body of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gac_core.server.protocol.common import MAX_INT, GenerationBody, Text

MAX_PROMPTS = 128


class CompletionBody(GenerationBody):
    """A request for the continuation of texts."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="A text, or several that are continued independently of each other."
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        None, description="Longest answer, in tokens of the union vocabulary; 0 needs `echo` and `logprobs`."
    )
    best_of: int | None = Field(None, ge=1, le=128, description="Must be equal to `n`.")
    echo: bool | None = Field(
        None, description="Whether the text, and with it `logprobs`, begins with the prompt. Default: false."
    )
    logprobs: int | None = Field(None, ge=0, le=5, description="Most probable tokens per position. Default: none.")
    suffix: None = None
