"""Several tokens per request and step, exactly those that one token per step would give.

Drafted tokens are fed to every member that is needed in one chunk, and each member tells its distribution at every
stage of the draft. Tokens are then picked stage by stage as `StepDecoder` picks them, with the same random number for
the same token, and the first one that is not the drafted one ends it: the text is that of plain decoding, greedy or
sampled (speculative decoding, Leviathan et al. 2023, with the draft coupled to the seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.commit import Writer
from gac_core.decoder import StepDecoder
from gac_core.draft import PromptLookup, Tally, lookup_length, run_ahead_length
from gac_core.path import Path
from gac_core.poll import Answers, Poll
from gac_core.request import Request
from gac_core.vocabulary import UnionVocabulary


@dataclass
class Drafting:
    """How a `SpeculativeDecoder` drafts.

    Attributes:
        lookup: Finds drafts in the text; None drafts none of them.
        ahead: Whether the gate, or the cheapest member, may run ahead.
        costs: Per member what one forward costs, in any unit.
        slope: How much dearer a forward gets with each further token in it, as a share.
    """

    lookup: PromptLookup | None
    ahead: bool
    costs: Sequence[float]
    slope: float


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
        for row, request in enumerate(batch):
            room = self._room(request)
            if room < 1:
                continue
            tally = request.tallies.setdefault("lookup", Tally(4, 1))
            length = lookup_length(tally.rate, len(batch), self._drafting.slope, room)
            voters = request.members if request.threshold is None else (request.gate,)
            tokens = lookup.propose(request.written, len(request.written) - request.prompt_bytes, length, voters)
            if not length:
                tally.rest()
            path = Path(request, self._writer, tally)
            if request.constraint is not None:
                tokens = tokens[: request.constraint.reach(tokens)]
            for data in tokens:
                if not path.extend(data):
                    break
            if path.tokens:
                paths[row] = path
        return paths

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
            tally = request.tallies.setdefault("ahead", Tally(6, 1))
            own = self._drafting.costs[self._drafter(request)]
            stats = request.stats
            need = (stats.steps_ensembled + 1) / (stats.steps + 1)
            others = sum(self._drafting.costs[member] for member in request.members) - own
            length = run_ahead_length(tally.rate, own, others, need, len(batch), self._drafting.slope, room + 1)
            if length > 1:
                lengths[row] = length
            else:
                tally.rest()
        return lengths

    def _drafter(self, request: Request) -> int:
        """The gate where there is a threshold, else the cheapest member, the gate among equals."""
        if request.threshold is not None:
            return request.gate
        costs = self._drafting.costs
        return min(request.members, key=lambda member: (costs[member], member != request.gate))

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
