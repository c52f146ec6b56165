"""From finished answers to the bodies of responses."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from gac_core.chat.tools import InvalidToolCall, ToolCall
from gac_core.integration.metadata import attribution_metadata, gac_metadata, token_counts
from gac_core.output import RequestOutput
from gac_core.server.catalog import ServedModel
from gac_core.server.generation.documents import Sources, url_citations
from gac_core.server.generation.echo import Echo
from gac_core.token_stats import TokenLogprob

MIN_LOGPROB = -9999.0
"""What JSON has in place of minus infinity, as in OpenAI's protocol."""

LARGE_ENTRIES = 64
"""Entries of `logprobs` and `token_stats` together from which JSON is written in a thread: some milliseconds."""

Object = dict[str, Any]

# Unlike `secrets`, it calls no system function, before which it would give up the GIL to the engine's thread.
_ids = random.Random()


def to_json(value: Any) -> bytes:
    """Returns a value as compact JSON.

    Raises:
        ValueError: It has a number that is not finite.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a response whose body is a value as JSON."""
    return Response(to_json(value), status, media_type="application/json")


@dataclass(frozen=True)
class Envelope:
    """What all bodies and chunks of one response have in common.

    Attributes:
        served: The model.
        kind: OpenAI's type of the object, such as ``"chat.completion"``.
        prefix: Beginning of its id.
        id: Its id.
        created: When, in seconds since 1970.
    """

    served: ServedModel
    kind: str
    prefix: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or f"{self.prefix}-{_ids.getrandbits(96):024x}")

    def fields(self) -> Object:
        """Returns the fields."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.served.id,
            "system_fingerprint": self.served.fingerprint,
        }


async def written(entries: int, write: Callable[[], bytes]) -> bytes:
    """Returns a body or events; large ones are written in a thread, so that they delay no other request.

    Args:
        entries: Entries of `logprobs` and `token_stats` together.
        write: Writes them.
    """
    return write() if entries < LARGE_ENTRIES else await asyncio.to_thread(write)


async def answer_response(outputs: Sequence[RequestOutput], write: Callable[[], bytes]) -> Response:
    """Returns the response of finished answers, whose body ``write`` makes."""
    entries = sum(len(output.logprobs or ()) + len(output.token_stats or ()) for output in outputs)
    return Response(await written(entries, write), media_type="application/json")


def answer_body(envelope: Envelope, choices: Iterable[Object], outputs: Sequence[RequestOutput], n: int) -> bytes:
    """Returns the body of a chat completion or completion, as JSON.

    Args:
        envelope: What the body has in common with others.
        choices: The choices; each is written by itself, since writing a value keeps the GIL.
        outputs: The answers, ``n`` to each prompt.
        n: Answers to each prompt.
    """
    before = to_json(envelope.fields()).removesuffix(b"}")
    return b'%b,"choices":[%b],"usage":%b}' % (before, b",".join(map(to_json, choices)), to_json(usage(outputs, n)))


def chat_choice(index: int, output: RequestOutput, sources: Sources) -> Object:
    """Returns one choice of a chat completion.

    Args:
        index: Its index.
        output: The answer.
        sources: The documents that annotations can name.
    """
    cited = url_citations(output, sources)
    return {
        "index": index,
        "message": {**chat_message(output), **({"annotations": cited} if cited else {})},
        "logprobs": chat_logprobs(output.logprobs),
        "finish_reason": output.finish_reason.value,
        "gac": gac_fields(output),
    }


def chat_message(output: RequestOutput) -> Object:
    """Returns an answer as a message; calls without a name, which OpenAI's form cannot represent, as content."""
    nameless = [call.arguments for call in output.invalid_tool_calls if call.name is None]
    calls = [
        *map(tool_call, output.tool_calls),
        *(tool_call(call) for call in output.invalid_tool_calls if call.name is not None),
    ]
    text = "".join([output.text, *nameless])
    message: Object = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if output.reasoning:
        message["reasoning_content"] = output.reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def tool_call(call: ToolCall | InvalidToolCall) -> Object:
    """Returns a call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def completion_choice(index: int, output: RequestOutput, echo: Echo) -> Object:
    """Returns one choice of a completion.

    Args:
        index: Its index.
        output: The answer.
        echo: What its text begins with.
    """
    logprobs = completion_logprobs(output.logprobs, len(echo.text))
    before = completion_logprobs(echo.logprobs, 0)
    if logprobs is not None and before is not None:
        logprobs = {name: before[name] + logprobs[name] for name in logprobs}
    return {
        "index": index,
        "text": echo.text + output.text,
        "logprobs": logprobs,
        "finish_reason": output.finish_reason.value,
        "gac": gac_fields(output),
    }


def gac_fields(output: RequestOutput) -> Object:
    """Returns the settings, costs and statistics of an answer, and which documents carried it."""
    return {**gac_metadata(output), **attribution_metadata(output), "stopped_by": output.stopped_by}


def usage(outputs: Sequence[RequestOutput], n: int) -> Object:
    """Returns the token counts of a response.

    Args:
        outputs: The answers, ``n`` to each prompt.
        n: Answers to each prompt; the prompt is counted once.
    """
    counts = [token_counts(output) for output in outputs]
    prompt = sum(each.prompt for each in counts[::n])
    completion = sum(each.completion for each in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached for each in counts[::n])},
        "completion_tokens_details": {"reasoning_tokens": sum(each.reasoning for each in counts)},
    }


def chat_logprobs(logprobs: Iterable[TokenLogprob] | None) -> Object | None:
    """Returns log-probabilities in the form of chat completions."""
    if logprobs is None:
        return None
    return {"content": [_entry(item) for item in logprobs], "refusal": None}


def _entry(item: TokenLogprob) -> Object:
    return {
        "token": item.token.decode(errors="replace"),
        "logprob": max(item.logprob, MIN_LOGPROB),
        "bytes": list(item.token),
        "top_logprobs": [
            {
                "token": token.decode(errors="replace"),
                "logprob": max(logprob, MIN_LOGPROB),
                "bytes": list(token),
            }
            for token, logprob in item.top
        ],
    }


def completion_logprobs(logprobs: Sequence[TokenLogprob] | None, offset: int) -> Object | None:
    """Returns log-probabilities in the form of completions.

    Args:
        logprobs: Those of the new tokens.
        offset: Characters of the text before them.
    """
    if logprobs is None:
        return None
    tokens = [text_of(item.token) for item in logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [max(item.logprob, MIN_LOGPROB) for item in logprobs],
        "top_logprobs": [_best(item) for item in logprobs],
        "text_offset": offsets,
    }


def _best(item: TokenLogprob) -> Mapping[str, float]:
    return {text_of(token): max(logprob, MIN_LOGPROB) for token, logprob in item.top}


def text_of(token: bytes) -> str:
    r"""Returns a token as text; one that is not UTF-8 by itself as ``bytes:\xf0\x9f``, as in OpenAI's protocol."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
