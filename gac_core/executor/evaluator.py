"""`Evaluator`: from a member's logits to distributions over the union, in the process where the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gac_core.errors import RequestError
from gac_core.executor.logit_offsets import scale_probs
from gac_core.executor.messages import TOP_K, Answer, Ask, Failure, Fetch, TargetLogprobs, Targets, TopDistributions
from gac_core.model.chunk import ChunkResult
from gac_core.model.member import Member
from gac_core.model.transfer import to_device, to_host
from gac_core.tokenization.vocabulary import Alignment

BLOCK_BYTES = 2**25
"""Bytes of logits that are converted to float32 at once to gather the log-probabilities of targets."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The logits that an ask wants, shape ``[ends, rows of the head]``, and its number in the call."""

    index: int
    ask: Ask
    values: Tensor


class Evaluator:
    """Answers asks with one member: forward, repetition penalty, temperature, alignment, masks, offsets, certainty.

    A failure of one ask does not affect the others.

    Args:
        member: The member.
        compact: Answer asks in the form ``"top"`` with `TopDistributions`, on the CPU, and keep the distributions to be
            fetched. Default: always answer with complete distributions.
    """

    def __init__(self, member: Member, compact: bool = False) -> None:
        self.member = member
        self._compact = compact
        # Distributions by request and length of its text, each of shape ``[union]``.
        self._kept: dict[str, dict[int, Tensor]] = {}

    @torch.inference_mode()
    def forward(self, asks: Sequence[Ask], prefill_seconds: float | None = None) -> list[Answer]:
        """Returns the answers to some asks, in their order.

        Args:
            asks: At most one per request.
            prefill_seconds: As in `Member.forward`.
        """
        computed = self.member.forward([ask.chunk for ask in asks], prefill_seconds)
        answers = [
            Answer(_first_result(each), each.seconds, each.read, each.computed, kept_bytes=each.kept_bytes)
            for each in computed
        ]
        good: list[_Rows] = []
        for index, (ask, result) in enumerate(zip(asks, computed, strict=True)):
            if isinstance(result.logits, Tensor) and ask.targets is not None:
                answers[index] = replace(answers[index], result=_gathered(ask.targets, result.logits))
            elif isinstance(result.logits, Tensor):
                rows = _rows(index, ask, result.logits)
                if isinstance(rows, Failure):
                    answers[index] = replace(answers[index], result=rows)
                else:
                    good.append(rows)
        for each, aligned in _align_all(good):
            answers[each.index] = self._finished(answers[each.index], each.ask, aligned)
        return answers

    def _finished(self, answer: Answer, ask: Ask, aligned: Tensor | Failure) -> Answer:
        """Returns an answer with what becomes of its aligned distributions."""
        probs = aligned if isinstance(aligned, Failure) else _constrain(ask, aligned)
        if isinstance(probs, Failure):
            return replace(answer, result=probs)
        certainty = None if ask.gate_rule is None else _measure(ask, probs)
        if isinstance(certainty, Failure):
            return replace(answer, result=certainty)
        if not self._compact or ask.form == "full":
            return replace(answer, result=probs, certainty=certainty)
        return replace(answer, result=self._shortened(ask, probs), certainty=certainty)

    def _shortened(self, ask: Ask, probs: Tensor) -> TopDistributions | Failure:
        """Returns the most probable tokens at each end, and keeps the distributions."""
        try:
            earlier = self._kept.get(ask.chunk.request_id, {})
            kept = {end: row for end, row in earlier.items() if ask.fetch_from <= end < ask.ends[0]}
            self._kept[ask.chunk.request_id] = {**kept, **dict(zip(ask.ends, _owned(probs), strict=True))}
            return top_distributions(probs, TOP_K, masked=ask.removes_mass)
        except BaseException as error:
            return Failure(error, "finding its most probable tokens")

    @torch.inference_mode()
    def fetch(self, wanted: Sequence[Fetch]) -> list[Tensor | Failure]:
        """Returns probabilities that answers left out, in the order of the fetches; see `Executor.fetch`."""
        return [self._fetched(each) for each in wanted]

    def _fetched(self, wanted: Fetch) -> Tensor | Failure:
        try:
            probs = self._kept[wanted.request_id][wanted.end]
            return probs if wanted.ids is None else probs.index_select(0, wanted.ids.to(probs.device))
        except BaseException as error:
            return Failure(error, f"fetching probabilities after {wanted.end} tokens")

    def release(self, request_id: str, clear: bool = False, wait: bool = True) -> bool:
        """Frees what is held for a request; see `Member.release`."""
        self._kept.pop(request_id, None)
        return self.member.release(request_id, clear, wait)


def _first_result(result: ChunkResult) -> Failure | None:
    if not isinstance(result.logits, BaseException):
        return None
    # Too many pinned documents are no failure of the member.
    return Failure(result.logits, of_member=not isinstance(result.logits, RequestError))


def _gathered(targets: Targets, logits: Tensor) -> TargetLogprobs | Failure:
    try:
        return TargetLogprobs(tuple(map(tuple, target_logprobs(targets, logits).tolist())))
    except BaseException as error:
        return Failure(error, "gathering the log-probabilities of a text")


def target_logprobs(targets: Targets, logits: Tensor) -> Tensor:
    """Returns the log-probability of each target, without a float32 copy of all logits.

    Args:
        targets: The targets.
        logits: Those of the positions before them, shape ``[ids, rows of the head]``.

    Returns:
        Float32, shape ``[temperatures, ids]``.
    """
    ids = to_device(list(targets.ids), logits.device)[:, None]
    size = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    found = [logits.new_zeros((len(targets.temperatures), 0), dtype=torch.float32)]
    for start in range(0, len(targets.ids), size):
        block, own = logits[start : start + size].float(), ids[start : start + size]
        scaled = (scale_logits(block, temperature) for temperature in targets.temperatures)
        found.append(torch.stack([each.gather(1, own)[:, 0] - each.logsumexp(-1) for each in scaled]))
    return torch.cat(found, dim=1)


def _rows(index: int, ask: Ask, logits: Tensor) -> _Rows | Failure:
    try:
        return _Rows(index, ask, wanted_rows(ask, logits))
    except BaseException as error:
        return Failure(error, "processing its logits")


def wanted_rows(ask: Ask, logits: Tensor) -> Tensor:
    """Returns the logits at the ends that an ask names, with repetition penalty and temperature.

    The penalty comes first: it divides or multiplies the model's own logits, as in CTRL and transformers, whatever the
    member's temperature.

    Args:
        ask: The ask.
        logits: Those of the chunk's last positions, shape ``[num_logits, rows of the head]``.

    Returns:
        Shape ``[ends, rows of the head]``; float32 where there is a temperature, else the dtype of ``logits``.
    """
    ends = ask.ends
    if len(ends) < logits.shape[0]:
        places = to_device([end - ends[-1] + logits.shape[0] - 1 for end in ends], logits.device)
        logits = logits.index_select(0, places)
    if ask.repetition_penalty != 1:
        text = [*ask.text_before, *ask.chunk.token_ids]
        seen = [to_device(sorted(set(text[:end])), logits.device) for end in ends]
        rows = zip(logits, seen, strict=True)
        logits = torch.stack([penalise_repetition(row, ids, ask.repetition_penalty) for row, ids in rows])
    return scale_logits(logits, ask.temperature)


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Divides logits by a temperature (temperature scaling, Guo et al. 2017); 1 returns them unchanged.

    Args:
        logits: Any shape and floating-point dtype.
        temperature: Above 0.

    Returns:
        Float32 of the same shape; with a temperature of 1 ``logits`` itself.
    """
    return logits if temperature == 1 else logits.float() / temperature


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides positive and multiplies negative logits of seen tokens by the penalty (CTRL, section 4.1).

    Args:
        logits: A member's logits, shape ``[rows of its head]``.
        seen: Ids of the tokens in its text so far, int64, shape ``[n]``.
        penalty: Above 0; 1 changes nothing.

    Returns:
        New logits of the same shape.
    """
    scores = logits[seen]
    out = logits.clone()
    out[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return out


def _align_all(rows: Sequence[_Rows]) -> Iterable[tuple[_Rows, Tensor | Failure]]:
    """Maps logits onto the union, in one batch for each alignment."""
    groups: dict[Alignment, list[_Rows]] = {}
    for each in rows:
        groups.setdefault(each.ask.alignment, []).append(each)
    for alignment, group in groups.items():
        yield from _align(alignment, group)


def _align(alignment: Alignment, group: Sequence[_Rows]) -> list[tuple[_Rows, Tensor | Failure]]:
    """Returns the distributions of some asks; if the batch raises, each is aligned by itself."""
    try:
        aligned = alignment.align(torch.cat([each.values for each in group]))
        parts = torch.split(aligned, [each.values.shape[0] for each in group])
        return list(zip(group, parts, strict=True))
    except BaseException as error:
        if len(group) > 1:
            return [result for each in group for result in _align(alignment, [each])]
        return [(group[0], Failure(error, "aligning its logits"))]


def _constrain(ask: Ask, probs: Tensor) -> Tensor | Failure:
    """Removes the mass of tokens that the request's grammar does not allow, and applies its penalties and bias.

    Args:
        ask: The ask.
        probs: Its distributions, float32, shape ``[ends, union]``; changed in place.
    """
    try:
        mask = None if ask.mask is None else ask.mask()
        if mask is not None:
            probs.mul_(mask.to(probs.device, non_blocking=True))
    except BaseException as error:
        return Failure(error, "masking what the grammar does not allow", of_member=False)
    try:
        if ask.offsets:
            scale_probs(probs, ask.offsets, mask)
    except BaseException as error:
        return Failure(error, "applying its penalties and bias", of_member=False)
    return probs


def _measure(ask: Ask, probs: Tensor) -> Tensor | Failure:
    """Returns how sure the member is at each end, by what masks and offsets leave."""
    assert ask.gate_rule is not None
    try:
        if not ask.removes_mass:
            return ask.gate_rule(probs, ask.share)
        totals = probs.sum(-1)
        # The others may keep all of their mass.
        least = ask.share * totals / (ask.share * totals + (1 - ask.share))
        return ask.gate_rule(probs / totals[:, None], least)
    except BaseException as error:
        return Failure(error, "measuring how sure its gate is", of_member=False)


def _owned(probs: Tensor) -> Tensor:
    """Returns distributions that keep no larger tensor alive, such as that of the whole batch."""
    return probs.clone() if probs.untyped_storage().nbytes() > probs.nbytes else probs


def top_distributions(probs: Tensor, k: int, masked: bool = False) -> TopDistributions:
    """Returns the most probable tokens of distributions, on the CPU; one device synchronisation.

    Args:
        probs: Float32, shape ``[positions, union]``.
        k: How many, at most; fewer where the union is smaller.
        masked: Whether mass may have been removed (`Ask.removes_mass`). Default False: the sums are taken to be 1.
    """
    more = probs.topk(min(k + 1, probs.shape[1]), dim=-1)
    totals = probs.sum(-1) if masked else probs.new_ones(probs.shape[0])
    values, ids, totals = to_host(more.values, more.indices, totals)
    rest = values[:, k] if values.shape[1] > k else values.new_zeros(values.shape[0])
    # `topk` orders equal probabilities arbitrarily, and selects arbitrarily among those that equal the last one.
    for row in torch.nonzero((rest > 0) & (rest == values[:, 0]))[:, 0].tolist():
        ids[row] = torch.nonzero(probs[row] == probs[row].max())[: ids.shape[1], 0].cpu()
    ids, order = ids[:, :k].sort(-1)
    values, by_value = values[:, :k].gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return TopDistributions(ids.gather(-1, by_value), values, totals, rest)
