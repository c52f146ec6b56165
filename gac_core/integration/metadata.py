"""A finished request's token counts and statistics as plain values, for frameworks that show them with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gac_core.output import RequestOutput
from gac_core.token_stats import TokenLogprob, TokenStats


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of a finished request, as frameworks report them.

    Attributes:
        prompt: Length of the prompt in the gate's tokens.
        completion: Generated union tokens, without the end of text.
        cached: Prompt tokens that every member found in its KV cache; at most ``prompt``.
        reasoning: Tokens of the completion that belong to the block of reasoning, its marks included.
    """

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


def token_counts(output: RequestOutput) -> TokenCounts:
    """Returns the token counts of a finished request."""
    usage = output.usage
    reused = min((member.reused_tokens for member in output.stats.members.values()), default=0)
    return TokenCounts(
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        cached=min(reused, usage.prompt_tokens),
        reasoning=usage.reasoning_tokens,
    )


def as_metadata(output: RequestOutput) -> dict[str, Any]:
    """Returns an answer's metadata as values that JSON can represent.

    The key ``gac`` has the fields of `EffectiveSettings` and `RequestStats`, and ``token_stats`` if requested. In a
    request with documents ``citations`` and ``document_shares`` are those of `RequestOutput`; ``doubt`` and
    ``tool_call_doubts`` (by the calls' ids) are there wherever several distributions were combined.
    """
    values: dict[str, Any] = {"finish_reason": output.finish_reason.value, "gac": gac_metadata(output)}
    if output.stopped_by is not None:
        values["stopped_by"] = output.stopped_by
    if output.seed is not None:
        values["seed"] = output.seed
    if output.logprobs is not None:
        values["logprobs"] = as_logprobs(output.logprobs)
    return {**values, **attribution_metadata(output)}


def attribution_metadata(output: RequestOutput) -> dict[str, Any]:
    """Returns the keys of `as_metadata` that say which documents carried an answer, and how sure it is."""
    values: dict[str, Any] = {}
    if output.document_shares:
        values["citations"] = [asdict(citation) for citation in output.citations]
        values["document_shares"] = dict(output.document_shares)
    if output.doubt is not None:
        values["doubt"] = asdict(output.doubt)
    if output.call_doubts:
        values["tool_call_doubts"] = {call: asdict(doubt) for call, doubt in output.call_doubts.items()}
    return values


def gac_metadata(output: RequestOutput) -> dict[str, Any]:
    """Returns the settings and statistics of an answer: the key ``gac`` of `as_metadata`."""
    stats = output.stats
    values: dict[str, Any] = {
        **asdict(stats.settings),
        "confidence": stats.confidence,
        "agreement": stats.agreement,
        "divergence": stats.divergence,
        "steps": stats.steps,
        "forced": stats.forced,
        "steps_ensembled": stats.steps_ensembled,
        "share_ensembled": stats.share_ensembled,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "queued_seconds": stats.queued_seconds,
        "first_token_seconds": stats.first_token_seconds,
        "total_seconds": stats.total_seconds,
        "left_out": stats.left_out,
        "dropped": [asdict(member) for member in stats.dropped],
        "members": {name: asdict(member) for name, member in stats.members.items()},
    }
    if output.token_stats is not None:
        values["token_stats"] = [_stats(item) for item in output.token_stats]
    return values


def as_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Returns log-probabilities in OpenAI's form, as in `as_metadata`; also those of one chunk of a stream."""
    return {"content": [_entry(item) for item in entries]}


def _stats(item: TokenStats) -> dict[str, Any]:
    members = [_given({**asdict(member), **_token(member.token)}, "document") for member in item.members]
    values = {**asdict(item), **_token(item.token), "members": members}
    values["votes"] = [asdict(vote) for vote in item.votes] or None
    return _given(values, "votes", "prior", "entropy")


def _given(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Returns values without the given names whose value is None: only requests with documents have them."""
    return {key: value for key, value in values.items() if key not in names or value is not None}


def _entry(item: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(item.token),
        "logprob": item.logprob,
        "top_logprobs": [{**_token(token), "logprob": logprob} for token, logprob in item.top],
    }


def _token(token: bytes) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "bytes": list(token)}
