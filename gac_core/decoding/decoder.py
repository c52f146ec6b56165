"""One step of a batch: which members are asked, and which token each request gets.

The paper's alignment: union tokens compete one against the other. Knows members only by index; commits what it picks;
does not end requests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gac_core.combination import arithmetic_mean, normalise
from gac_core.decoding.agreement import agreement, jensen_shannon
from gac_core.decoding.choice import Choice, picked_of, sure_logprob
from gac_core.decoding.commit import Writer
from gac_core.decoding.path import Path
from gac_core.decoding.poll import Answers, Poll
from gac_core.decoding.request import Picked, Request
from gac_core.errors import GaCError, GrammarError, InvalidLogitsError
from gac_core.failures import request_failure
from gac_core.grammar.checker import STACK_SIZE
from gac_core.threads import DaemonPool
from gac_core.tokenization.vocabulary import UnionVocabulary

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Picks the next tokens of every request of a batch."""

    def decode(self, batch: Sequence[Request]) -> list[list[Picked | GaCError]]:
        """Returns per request its next tokens, which are committed already, or the error that one of its members met.

        None where a member is still reading; an error may follow tokens, and comes last.
        """
        ...

    def close(self) -> None:
        """Stops; nothing may be decoded afterwards."""
        ...


class StepDecoder:
    """Decodes one union token per request and step (GaC, sections 3.2 to 3.4).

    Args:
        poll: Asks the members.
        union: The union vocabulary.
        weights: One per member, above 0.
        names: The members' names.
        writer: Commits tokens.
    """

    # Masks of grammars are computed beside the forwards, which leave few cores to them.
    MASK_THREADS = 4
    # Seconds that Python's exit waits for masks that are being computed, at most.
    MASK_GRACE = 1.0

    def __init__(
        self, poll: Poll, union: UnionVocabulary, weights: Sequence[float], names: Sequence[str], writer: Writer
    ) -> None:
        self._poll = poll
        self._union = union
        self._weights = list(weights)
        self._names = list(names)
        self._writer = writer
        self._masking = DaemonPool("gac-masks", self.MASK_THREADS, stack_size=STACK_SIZE, grace=self.MASK_GRACE)

    def close(self) -> None:
        """Stops the threads that compute masks; nothing may be decoded afterwards."""
        self._masking.close()

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request]) -> list[list[Picked | GaCError]]:
        """Picks the next tokens of every request, or the error that one of its members met.

        What a grammar forces is committed as it is; members read it with what comes after it.
        """
        done = {row: self._forced(request) for row, request in enumerate(batch) if request.constraint is not None}
        free = [row for row in range(len(batch)) if not done.get(row)]
        if free:
            done.update(zip(free, self._decide_safely([batch[row] for row in free], len(batch) > 1), strict=True))
        return [done[row] for row in range(len(batch))]

    def _decide_safely(self, batch: Sequence[Request], crowded: bool) -> list[list[Picked | GaCError]]:
        """Decides; if that raises, request by request, so that only those it is about fail.

        Nothing is committed before it is settled, and settling raises nothing, so that a step may be done again.
        """
        try:
            return self._decide(batch, crowded)
        except BaseException as error:
            # What was read stays in the caches; its last logits are computed again.
            for text in (text for request in batch for text in request.texts.values()):
                text.num_cached = min(text.num_cached, len(text.ids) - 1)
            if len(batch) > 1:
                logger.warning("a step of %d requests failed and is done one by one", len(batch), exc_info=True)
                return [done for request in batch for done in self._decide_safely([request], crowded)]
            return [[request_failure("deciding its next token", error)]]

    def _forced(self, request: Request) -> list[Picked | GaCError]:
        """Commits the tokens that a grammar leaves no choice about."""
        done: list[Picked | GaCError] = []
        assert request.constraint is not None
        try:
            for data in request.constraint.forced():
                if not self._writer.write(request, Picked(data, False, sure_logprob(request, data), forced=True), done):
                    break
        except BaseException as error:
            done.append(request_failure("writing what the grammar forces", error))
        return done

    def _decide(self, batch: Sequence[Request], crowded: bool) -> list[list[Picked | GaCError]]:
        """Picks the next tokens of requests that have a choice.

        Gates are asked first; a gate that is sure decides alone and the other members do nothing. All others are then
        asked in one forward each, and read whatever they skipped in the same chunk.
        """
        answers = Answers.of(batch, crowded)
        paths = self._draft(batch)
        for row, request in enumerate(batch):
            if request.constraint is not None:
                request.constraint.prepare(paths[row].tokens if row in paths else (), self._masking)
        sure = self._ask_gates(batch, answers, paths)
        self._run_ahead(batch, answers, paths, sure)
        since = {row: self._first_unsure(sure.get(row)) for row in range(len(batch)) if answers.open(row)}
        rest = {
            row: [m for m in batch[row].members if m not in answers.rows[row]]
            for row, stage in since.items()
            if stage is not None
        }
        self._poll.ask(batch, rest, answers, paths, {row: stage for row, stage in since.items() if stage})
        choices = self._choose(batch, answers, paths, sure)
        settled: list[list[Picked | GaCError]] = [[] for _ in batch]
        for row, request in enumerate(batch):
            try:
                self._settle(row, request, answers, paths.get(row), choices, settled[row])
            except BaseException as error:
                settled[row].append(request_failure("writing its next token", error))
        return settled

    # ---- drafting: nothing here; `SpeculativeDecoder` does

    def _draft(self, batch: Sequence[Request]) -> dict[int, Path]:
        """Returns drafted texts by row."""
        return {}

    def _run_ahead(
        self, batch: Sequence[Request], answers: Answers, paths: dict[int, Path], sure: dict[int, list[bool]]
    ) -> None:
        """Lets gates draft."""

    # ---- asking

    def _ask_gates(
        self, batch: Sequence[Request], answers: Answers, paths: Mapping[int, Path]
    ) -> dict[int, list[bool]]:
        """Asks the gates of thresholded requests; returns by row at which stages the gate decides alone."""
        gated = [row for row, request in enumerate(batch) if request.threshold is not None]
        asked = {row: [batch[row].gate] for row in gated if batch[row].gate not in answers.rows[row]}
        self._poll.ask(batch, asked, answers, paths)
        return self._sure(batch, answers, [row for row in gated if answers.open(row)])

    def _sure(self, batch: Sequence[Request], answers: Answers, rows: Sequence[int]) -> dict[int, list[bool]]:
        """At which stages each row's gate is at or above its threshold; the look at all of them is one."""
        if not rows:
            return {}
        told = [answers.rows[row][batch[row].gate] for row in rows]
        tops = [
            (part.amax(-1) if batch[row].constraint is None else part.amax(-1) / part.sum(-1)).to(told[0].device)
            for row, part in zip(rows, told, strict=True)
        ]
        looks = torch.split(torch.cat(tops).cpu(), [len(top) for top in tops])
        return {
            # Only requests with a threshold are asked for.
            row: [top >= (batch[row].threshold or 0.0) for top in look.tolist()]
            for row, look in zip(rows, looks, strict=True)
        }

    @staticmethod
    def _first_unsure(sure: Sequence[bool] | None) -> int | None:
        """The first stage that needs all members; None if there is none."""
        if sure is None:
            return 0
        return next((stage for stage, alone in enumerate(sure) if not alone), None)

    # ---- choosing

    def _choose(
        self,
        batch: Sequence[Request],
        answers: Answers,
        paths: Mapping[int, Path],
        sure: Mapping[int, Sequence[bool]],
    ) -> dict[tuple[int, int], Choice]:
        """Combines and picks at every stage that has what it needs; the look at all of them is one."""
        keys: list[tuple[int, int]] = []
        asked: list[Sequence[int]] = []
        combined: list[Tensor] = []
        facts: list[Tensor] = []
        for row, request in enumerate(batch):
            if not answers.open(row):
                continue
            stages = paths[row].stages if row in paths else 1
            for stage in range(stages):
                members = (request.gate,) if row in sure and sure[row][stage] else request.members
                told = [answers.stage(row, member, stage) for member in members]
                shares = normalise([self._weights[member] for member in members])
                mixed = told[0] if len(members) == 1 else arithmetic_mean(told, shares)
                # What a grammar leaves of the mass is the whole.
                whole = None if request.constraint is None else mixed.sum()
                mixed = mixed if whole is None else mixed / whole
                keys.append((row, stage))
                asked.append(members)
                combined.append(mixed)
                facts.append(self._facts(request, mixed, told, shares, stage, whole))
        if not keys:
            return {}
        width = max(len(members) for members in asked)
        values = torch.stack(
            [torch.nn.functional.pad(fact.to(facts[0].device), (0, 4 + width - len(fact))) for fact in facts]
        ).tolist()
        return {
            key: Choice.of(mixed, members, value)
            for key, mixed, members, value in zip(keys, combined, asked, values, strict=True)
        }

    def _facts(
        self,
        request: Request,
        mixed: Tensor,
        told: Sequence[Tensor],
        shares: Sequence[float],
        stage: int,
        whole: Tensor | None,
    ) -> Tensor:
        """What `Choice.of` reads, float64, shape ``[4 + members]``.

        What members give is measured by the whole that a grammar leaves of the combined mass, as the probability is.
        """
        sampler = request.sampler
        # A draw from a distribution that is none would fail; the probability below tells what is wrong.
        if sampler.greedy or not bool(torch.isfinite(mixed[0])):
            token = mixed.argmax(keepdim=True)
        else:
            token = torch.tensor([sampler.pick(mixed, self._union.keys(mixed.device), stage)], device=mixed.device)
        given = [part.index_select(0, token.to(part.device)).to(mixed.device) for part in (mixed, *told)]
        compared = [torch.zeros_like(given[0])] * 2
        if len(told) > 1:
            compared = [agreement(told, given[1:]), jensen_shannon(told, shares, mixed)]
        if whole is not None:
            given[1:] = [part / whole for part in given[1:]]
        return torch.cat([part.double() for part in (token, given[0], *compared, *given[1:])])

    # ---- settling

    def _settle(
        self,
        row: int,
        request: Request,
        answers: Answers,
        path: Path | None,
        choices: Mapping[tuple[int, int], Choice],
        done: list[Picked | GaCError],
    ) -> None:
        """Commits what was picked, as far as what was drafted is what was picked, and files it under ``done``."""
        if row in answers.errors:
            done.append(answers.errors[row])
            return
        if row in answers.unread:
            request.told = {m: told[:1] for m, told in answers.rows[row].items() if not answers.since.get((row, m))}
            return
        request.told = {}
        stages = path.stages if path is not None else 1
        stage = 0
        for stage in range(stages):
            choice = choices[row, stage]
            if not 0 < choice.best < float("inf"):
                done.append(self._unusable(row, answers, choice, stage))
                break
            picked = picked_of(self._union, request, choice)
            request.sampler.advance()
            if not self._writer.write(request, picked, done) or path is None or stage + 1 == stages:
                break
            if not path.followed(request, stage + 1) or self._is_forced(request):
                break
        if path is not None:
            path.tally.note(path.drafted, stage)
            request.stats.drafted += path.drafted
            request.stats.accepted += stage

    @staticmethod
    def _is_forced(request: Request) -> bool:
        """Whether a grammar, not a vote, decides what comes next; an error of its is met in the next step."""
        try:
            return request.constraint is not None and bool(request.constraint.forced())
        except BaseException:
            return True

    def _unusable(self, row: int, answers: Answers, choice: Choice, stage: int) -> GaCError:
        for member in choice.members:
            if not bool(torch.isfinite(answers.stage(row, member, stage)).all()):
                return InvalidLogitsError(self._names[member])
        return GrammarError(
            "none of the tokens that the grammar allows here has any probability for members "
            f"{', '.join(self._names[member] for member in choice.members)}; tell them in the prompt what to write"
        )
