"""Fields that bodies have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gac_core.voices import MAX_VOICES

MAX_INT = 2**63 - 1
"""Largest integer of a body."""

Text = Annotated[str, StringConstraints(strict=True)]
NonEmpty = Annotated[str, StringConstraints(strict=True, min_length=1)]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Weight = Annotated[float, Field(ge=0, le=1e30)]
DocumentWeight = Annotated[float, Field(gt=0, le=1e30)]
TokenId = Annotated[str, StringConstraints(strict=True, pattern=r"^(0|[1-9][0-9]{0,8})$")]
Biases = Annotated[dict[TokenId, Bias], Field(json_schema_extra={"additionalProperties": False})]
MAX_STOPS = 16
MAX_ITEMS = 10_000
"""Most messages, parts of a content, calls and choices."""
MAX_TOKEN_ID = 2**31 - 1
MAX_ID, MAX_TITLE, MAX_URL = 512, 1024, 4096
"""Most characters of a document's fields, which answers repeat for each sentence."""


class Part(BaseModel):
    """A base of all objects in bodies: unknown fields are refused and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class StreamOptions(Part):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Whether a last chunk has the token counts. Default: false.")
    include_obfuscation: Literal[False] | None = None


class RegexGrammar(Part):
    """Text that a regular expression matches completely."""

    regex: NonEmpty = Field(description="Rust syntax, without look-around.")


class LarkGrammar(Part):
    """Text that a Lark grammar derives from its rule `start`."""

    lark: NonEmpty = Field(description="A grammar in llguidance's dialect of Lark.")


class ChoicesGrammar(Part):
    """Exactly one of some texts."""

    choices: list[NonEmpty] = Field(min_length=1, max_length=MAX_ITEMS)


GrammarBody = RegexGrammar | LarkGrammar | ChoicesGrammar


class DocumentBody(Part):
    """A text that the answer may come from, such as a retrieved passage."""

    text: NonEmpty
    id: NonEmpty | None = Field(
        None, max_length=MAX_ID, description='Names it in citations. Default: its number, from "1".'
    )
    score: float | None = Field(
        None, ge=-1e30, le=1e30, description="How relevant the retrieval found it; larger is better."
    )
    title: Text | None = Field(None, max_length=MAX_TITLE, description="Its title in `annotations`. Default: its id.")
    url: NonEmpty | None = Field(
        None, max_length=MAX_URL, description="Its address in `annotations`; it is not fetched."
    )


class GenerationBody(Part):
    """What requests for chat completions and completions have in common."""

    model: Text | None = Field(None, description="Id of a model; may be left out where one ensemble is served.")
    max_tokens: Count | None = Field(None, description="Longest answer, in tokens of the union vocabulary.")
    temperature: float | None = Field(None, ge=0, le=2, description="0: the most probable token.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128, description="Answers to each prompt. Default: 1.")
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[NonEmpty], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Strings that end the text and are not part of it."
    )
    seed: int | None = Field(None, ge=-MAX_INT, le=MAX_INT)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = Field(
        None, description="Added to log-probabilities; keys are ids of the gate's tokenizer, as /tokenize returns them."
    )
    stream: bool | None = Field(None, description="Whether to send the answer in parts as it is generated.")
    stream_options: StreamOptions | None = None

    # Fields that change nothing here.
    user: Text | None = Field(None, description="Accepted; has no effect.")
    metadata: dict[str, Text] | None = Field(None, description="Accepted; has no effect.")

    # Fields of our own.
    threshold: Probability | Literal["default"] | None = Field(
        "default",
        description="At or above this certainty the gate decides alone; null: every step is ensembled.",
    )
    gate: NonEmpty | None = Field(None, description="Name of the gate.")
    weights: dict[NonEmpty, Weight] | list[Weight] | Literal["auto", "perplexity"] | None = Field(
        None, description="Weights of the members, by name or in order."
    )
    combine: NonEmpty | None = Field(None, description="How distributions are combined.")
    documents: Annotated[list[NonEmpty | DocumentBody], Field(min_length=1, max_length=MAX_VOICES)] | None = Field(
        None, description="Texts, each of which every member reads in a prompt of its own, in place of `place`."
    )
    document_weights: (
        Literal["scores", "equal"] | Annotated[list[DocumentWeight], Field(max_length=MAX_VOICES)] | None
    ) = Field(None, description='Weights of the documents, in order, or where they come from. Default: "scores".')
    prior: bool | Text | None = Field(
        None,
        description="Whether the prompt is also read without a document, or with this text in its place; default true.",
    )
    place: NonEmpty | None = Field(None, description='What the documents take the place of. Default: "{document}".')
    combine_documents: NonEmpty | None = Field(None, description="How distributions of documents are combined.")
    gate_rule: NonEmpty | None = Field(None, description="How the gate's certainty is measured.")
    top_k: Count | None = None
    min_p: Probability | None = None
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    timeout: float | None = Field(None, gt=0, le=1e9, description="Seconds that the request may take.")
    drafts: bool | None = Field(None, description="Speculative decoding; changes the cost only. Default: true.")
    grammar: GrammarBody | None = Field(None, description="What the text must look like.")
    trace: bool | None = Field(None, description="Whether `gac` has what each member proposed at every token.")
