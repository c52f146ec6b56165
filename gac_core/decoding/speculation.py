"""Several tokens per request and step, exactly those that one token per step would give.

Drafted tokens are fed to every member that is needed in one chunk, and each member tells its distribution at every
stage of the draft. Tokens are then picked stage by stage as `StepDecoder` picks them, with the same random number for
the same token, and the first one that is not the drafted one ends it: the text is that of plain decoding, greedy or
sampled (speculative decoding, Leviathan et al. 2023, with the draft coupled to the seed).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from gac_core.decoding.commit import Writer
from gac_core.decoding.decoder import StepDecoder
from gac_core.decoding.drafting import Balance, PromptLookup, Tally, lookup_length, run_ahead_length
from gac_core.decoding.path import Path
from gac_core.decoding.poll import Answers, Poll
from gac_core.decoding.request import Picked, Request
from gac_core.errors import GaCError
from gac_core.model.costs import ForwardTimes
from gac_core.tokenization.vocabulary import UnionVocabulary

logger = logging.getLogger(__name__)


@dataclass
class Drafting:
    """How a `SpeculativeDecoder` drafts.

    Attributes:
        lookup: Finds drafts in the text; None drafts none of them.
        ahead: Whether the gate, or the cheapest member, may run ahead.
        times: Per member how long its forwards take.
    """

    lookup: PromptLookup | None
    ahead: bool
    times: Sequence[ForwardTimes]


class SpeculativeDecoder(StepDecoder):
    """Decodes one or more union tokens per request and step.

    Args:
        poll: Asks the members.
        union: The union vocabulary.
        weights: One per member, above 0.
        names: The members' names.
        writer: Commits tokens.
        drafting: How to draft.
    """

    # Tokens drafted for one request in one step at most; rows of up to eight tokens share a forward.
    LIMIT = 7
    # A member that still has more than this to read is not worth a draft.
    UNREAD = 64
    # Drafted tokens of each kind taken to have been right and wrong before the first: the longer the end of the text
    # that was found again, the likelier.
    PRIORS: ClassVar = {"ahead": (1, 1), 8: (1, 1), 16: (2, 1), 32: (4, 1)}
    # A member takes the gate's place as drafter where its forwards take less than this share of the gate's.
    CHEAPER = 0.9

    def __init__(
        self,
        poll: Poll,
        union: UnionVocabulary,
        weights: Sequence[float],
        names: Sequence[str],
        writer: Writer,
        drafting: Drafting,
    ) -> None:
        super().__init__(poll, union, weights, names, writer)
        self._drafting = drafting
        self._tallies: dict[str, Tally] = {}
        self._balances = {"lookup": Balance(), "ahead": Balance()}
        # Per kind of draft in this step what it costs more than none, in seconds, and its rows.
        self._used: dict[str, tuple[float, list[int]]] = {}
        self._overheads: deque[float] = deque(maxlen=9)

    def _decide(self, batch: Sequence[Request], crowded: bool) -> list[list[Picked | GaCError]]:
        """Decides, and keeps the books on what drafts cost and saved."""
        self._used = {}
        accepted = [request.stats.accepted for request in batch]
        stages = len(batch) - sum(request.stats.drafted for request in batch)
        began, forwards = time.perf_counter(), self._forward_seconds()
        done = super()._decide(batch, crowded)
        try:
            self._keep_books(batch, accepted, stages, began, forwards)
        except Exception:
            # What was decided is committed; drafts may be weighed by older numbers.
            logger.exception("the costs of drafts could not be noted")
        return done

    def _keep_books(
        self, batch: Sequence[Request], accepted: Sequence[int], stages: int, began: float, forwards: float
    ) -> None:
        if not any(self._is_reading(request) for request in batch):
            stages += sum(request.stats.drafted for request in batch)
            spent = time.perf_counter() - began - (self._forward_seconds() - forwards)
            self._overheads.append(max(spent, 0.0) / stages)
        plain = self._lookup_cost(batch)(0)
        for kind, balance in self._balances.items():
            loss, rows = self._used.get(kind, (0.0, []))
            gained = sum(batch[row].stats.accepted - accepted[row] for row in rows)
            balance.note(plain, gained * plain / len(batch) - loss)

    def _forward_seconds(self) -> float:
        return sum(times.total for times in self._drafting.times)

    def _is_reading(self, request: Request) -> bool:
        """Whether a step of this request is no measure of what steps cost: a member reads more than a few tokens."""
        return request.num_tokens <= 1 or any(len(t.ids) - t.num_cached > self.LIMIT for t in request.texts.values())

    def _overhead(self) -> float:
        """Seconds that a stage of one row takes beside the forwards."""
        return statistics.median(self._overheads) if self._overheads else 0.0

    def _seconds(self, shares: Mapping[int, float], tokens: int) -> float:
        """Seconds of one forward of each member, as often as it takes part, over so many tokens."""
        return sum(share * self._drafting.times[member].seconds(tokens) for member, share in shares.items())

    @staticmethod
    def _shares(batch: Sequence[Request]) -> dict[int, float]:
        """Per member in how many of the steps it takes part: all, but for those that a gate decides alone."""
        shares: dict[int, float] = {}
        for request in batch:
            need = (request.stats.steps_ensembled + 1) / (request.stats.steps + 1)
            for member in request.members:
                share = 1.0 if request.threshold is None or member == request.gate else need
                shares[member] = max(share, shares.get(member, 0.0))
        return shares

    def _lookup_cost(self, batch: Sequence[Request]) -> Callable[[int], float]:
        """Seconds of a step by how many tokens are drafted for each row."""
        shares, rows, overhead = self._shares(batch), len(batch), self._overhead()
        return cache(lambda drafted: self._seconds(shares, rows * (drafted + 1)) + overhead * rows * (drafted + 1))

    def _tally(self, request: Request, kind: str, prior: tuple[float, float]) -> Tally:
        """A request's tally of a kind of draft, begun at what all requests have shown."""
        if kind not in request.tallies:
            request.tallies[kind] = self._tallies.setdefault(kind, Tally(*prior)).child()
        return request.tallies[kind]

    def _room(self, request: Request) -> int:
        """Most tokens to draft for a request; 0 where drafts are not wanted or come too early."""
        if not request.params.drafts or request.told:
            return 0
        needed = request.members if request.threshold is None else (request.gate,)
        if any(len(request.texts[m].ids) - request.texts[m].num_cached > self.UNREAD for m in needed):
            return 0
        return min(self.LIMIT, request.params.max_tokens - request.num_tokens - 1)

    # ---- prompt lookup

    def _draft(self, batch: Sequence[Request]) -> dict[int, Path]:
        paths: dict[int, Path] = {}
        lookup = self._drafting.lookup
        if lookup is None:
            return paths
        cost = self._lookup_cost(batch)
        spare = self._balances["lookup"].spare(cost(0))
        for row, request in enumerate(batch):
            room = self._room(request)
            if room < 1:
                continue
            found, matched = lookup.find(request.written, len(request.written) - request.prompt_bytes)
            if not found:
                continue
            tally = self._tally(request, f"lookup {matched}", self.PRIORS.get(matched, (1, 1)))
            length = lookup_length(tally.rate, cost, room, spare)
            if not length:
                tally.rest()
                continue
            path = self._looked_up(request, lookup, found, length, tally)
            if path.tokens:
                paths[row] = path
        if paths:
            longest = max(len(path.tokens) for path in paths.values())
            self._used["lookup"] = cost(longest) - cost(0), list(paths)
        return paths

    def _looked_up(self, request: Request, lookup: PromptLookup, found: bytes, length: int, tally: Tally) -> Path:
        """The path of tokens that were found; without any where the first cannot follow."""
        voters = request.members if request.threshold is None else (request.gate,)
        tokens = lookup.cut(found, length, voters)
        if request.constraint is not None:
            tokens = tokens[: request.constraint.reach(tokens)]
        path = Path(request, self._writer, tally)
        for data in tokens:
            if not path.extend(data):
                break
        return path

    # ---- running ahead

    def _run_ahead(
        self, batch: Sequence[Request], answers: Answers, paths: dict[int, Path], sure: dict[int, list[bool]]
    ) -> None:
        """Drops what gates disprove alone; then lets a member write on, for the others to check in one chunk."""
        for row in [row for row in paths if row in sure]:
            self._disprove(row, batch[row], answers, paths[row], sure[row])
        lengths = self._lengths(batch, answers, paths, sure)
        drafters = {row: self._drafter(batch[row]) for row in lengths}
        for row in lengths:
            paths[row] = Path(batch[row], self._writer, batch[row].tallies["ahead"])
        ask = {row: [member] for row, member in drafters.items() if member not in answers.rows[row]}
        self._poll.ask(batch, ask, answers, paths)
        going = list(lengths)
        for stage in range(1, max(lengths.values(), default=1)):
            going = [row for row in going if lengths[row] > stage and answers.open(row)]
            told = {row: answers.stage(row, drafters[row], stage - 1) for row in going}
            going = [
                row
                for row, data in self._picks(batch, told, stage - 1).items()
                if data and self._may_follow(batch[row], paths[row], data) and paths[row].extend(data)
            ]
            self._poll.ask(batch, {row: [drafters[row]] for row in going}, answers, paths)
        gated = [row for row in lengths if row in sure and answers.open(row)]
        sure.update(self._sure(batch, answers, gated))

    @staticmethod
    def _may_follow(request: Request, path: Path, data: bytes) -> bool:
        """Whether a grammar leaves it to a vote what follows the path, and allows these bytes."""
        drafted = [*path.tokens, data]
        return request.constraint is None or request.constraint.reach(drafted) == len(drafted)

    def _disprove(self, row: int, request: Request, answers: Answers, path: Path, sure: list[bool]) -> None:
        """Cuts a draft after the first token at which a gate that is sure picks another one."""
        alone = self._first_unsure(sure)
        for stage in range(min(path.stages - 1, path.stages if alone is None else alone)):
            picked = self._picks([request], {0: answers.stage(row, request.gate, stage)}, stage)[0]
            if picked != path.tokens[stage]:
                path.disprove(stage)
                del sure[stage + 1 :]
                return

    def _lengths(
        self,
        batch: Sequence[Request],
        answers: Answers,
        paths: Mapping[int, Path],
        sure: Mapping[int, Sequence[bool]],
    ) -> dict[int, int]:
        """Per row that shall run ahead: how many forwards."""
        lengths: dict[int, int] = {}
        if not self._drafting.ahead:
            return lengths
        for row, request in enumerate(batch):
            room = self._room(request) if answers.open(row) and row not in paths else 0
            if room < 1 or len(request.members) == 1 or (row in sure and sure[row][0]):
                continue
            tally = self._tally(request, "ahead", self.PRIORS["ahead"])
            cost, token = self._ahead_cost(request, len(batch))
            spare = self._balances["ahead"].spare(token)
            length = run_ahead_length(tally.rate, cost, token, room + 1, spare)
            if length > 1:
                lengths[row] = length
                loss, rows = self._used.get("ahead", (0.0, []))
                self._used["ahead"] = max(loss, cost(length) - cost(1)), [*rows, row]
            else:
                tally.rest()
        return lengths

    def _ahead_cost(self, request: Request, rows: int) -> tuple[Callable[[int], float], float]:
        """Seconds of a step by how many forwards the drafter makes in it, and of a token without drafts."""
        drafter, overhead = self._drafter(request), self._overhead() * rows
        shares = self._shares([request])
        own = shares.pop(drafter) * self._drafting.times[drafter].seconds(rows)
        checking = dict.fromkeys(shares, 1.0)
        return (
            cache(lambda forwards: forwards * (own + overhead) + self._seconds(checking, rows * forwards)),
            own + overhead + self._seconds(shares, rows),
        )

    def _drafter(self, request: Request) -> int:
        """The gate where there is a threshold, else the fastest member, or the gate if it is hardly slower."""
        if request.threshold is not None:
            return request.gate
        seconds = {member: self._drafting.times[member].seconds(1) for member in request.members}
        fastest = min(seconds, key=lambda member: seconds[member])
        slower = request.gate not in seconds or seconds[fastest] < self.CHEAPER * seconds[request.gate]
        return fastest if slower else request.gate

    def _picks(self, batch: Sequence[Request], told: Mapping[int, Tensor], stage: int) -> dict[int, bytes | None]:
        """What each row would get if one member's word were the whole; the look at all of them is one."""
        if not told:
            return {}
        tokens = []
        for row, probs in told.items():
            sampler = batch[row].sampler
            if sampler.greedy or not bool(probs.sum() > 0):
                tokens.append(probs.argmax(keepdim=True).cpu())
            else:
                tokens.append(torch.tensor([sampler.pick(probs, self._union.keys(probs.device), stage)]))
        return {row: self._union.data(token) for row, token in zip(told, torch.cat(tokens).tolist(), strict=True)}
