"""One step of a batch with boundary alignment: members vote on text; one whose token goes on waits with it.

Knows members only by index; commits nothing but bytes that waited, and does not end requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gac_core.aggregation import normalise
from gac_core.boundary import Ahead, Cut, Text, View, Vote, agreed
from gac_core.commit import Writer
from gac_core.decoder import Decoder
from gac_core.errors import GaCError, InvalidLogitsError, UnwritableTextError
from gac_core.output import TokenLogprob
from gac_core.poll import Answers, Poll
from gac_core.request import Picked, Request
from gac_core.tokenizer import MemberTokenizer
from gac_core.vocabulary import UnionVocabulary


class BoundaryDecoder:
    """Decodes some bytes per request and step.

    Args:
        poll: Asks the members.
        union: The union vocabulary.
        weights: One per member, above 0.
        names: The members' names.
        tokenizers: One per member.
        writer: Commits bytes.
        plain: Decodes requests with a grammar, whose masks are defined on tokens.
    """

    def __init__(
        self,
        poll: Poll,
        union: UnionVocabulary,
        weights: Sequence[float],
        names: Sequence[str],
        tokenizers: Sequence[MemberTokenizer],
        writer: Writer,
        plain: Decoder,
    ) -> None:
        self._plain = plain
        self._poll = poll
        self._union = union
        self._weights = dict(enumerate(normalise(weights)))
        self._tokenizers = list(tokenizers)
        self._names = list(names)
        self._writer = writer
        self._cut_of = lru_cache(maxsize=100_000)(self._cut)

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request]) -> list[list[Picked | GaCError]]:
        """Picks the next bytes of every request, or the error that one of its members met."""
        free = [request for request in batch if request.constraint is None]
        others = [request for request in batch if request.constraint is not None]
        decided = iter(self._decide(free) if free else ())
        constrained = iter(self._plain.decode(others) if others else ())
        return [next(decided if request.constraint is None else constrained) for request in batch]

    def _decide(self, batch: Sequence[Request]) -> list[list[Picked | GaCError]]:
        """Picks the next bytes of requests without a grammar.

        As in the paper's alignment, gates are asked first, and members are asked in one forward each; a member that
        waits is not asked at all, since what it said before still holds.
        """
        answers = Answers.of(batch)
        for row, request in enumerate(batch):
            for member, text in request.texts.items():
                if text.held is not None:
                    answers.rows[row][member] = text.held[None]
        gated = [row for row, request in enumerate(batch) if request.threshold is not None]
        self._ask(batch, {row: [batch[row].gate] for row in gated}, answers)
        alone = {row for row in gated if answers.open(row) and self._sure(batch[row], answers.rows[row])}
        rest = [row for row in range(len(batch)) if row not in alone and answers.open(row)]
        self._ask(batch, {row: batch[row].members for row in rest}, answers)
        views = {
            row: self._views(request, answers.rows[row], [request.gate] if row in alone else request.members)
            for row, request in enumerate(batch)
            if answers.open(row)
        }
        chosen = self._choose(batch, views, answers)
        done: list[list[Picked | GaCError]] = [[] for _ in batch]
        for row, request in enumerate(batch):
            request.told = answers.rows[row] if row in answers.unread else {}
            if row in answers.errors:
                done[row].append(answers.errors[row])
            elif row not in answers.unread:
                self._writer.write(
                    request, self._settle(request, views[row], row not in alone, *chosen[row]), done[row]
                )
                request.sampler.advance()
        return done

    def _ask(self, batch: Sequence[Request], wanted: Mapping[int, Sequence[int]], answers: Answers) -> None:
        """Asks members, again as long as bytes that wait turn out to be whole tokens of theirs."""
        missing = {row: [m for m in members if m not in answers.rows[row]] for row, members in wanted.items()}
        while any(missing.values()):
            self._poll.ask(batch, missing, answers)
            self._poll.check(answers)
            missing = {
                row: [m for m in members if m in answers.rows[row] and self._takes_in(row, batch[row], m, answers)]
                for row, members in missing.items()
                if row not in answers.errors
            }

    def _takes_in(self, row: int, request: Request, member: int, answers: Answers) -> bool:
        """Turns bytes that wait into ids, as far as the member's answer tells; True if it must be asked again."""
        text, told = request.texts[member], answers.rows[row]
        if not text.waiting or row in answers.errors:
            return False
        view = View(self._union, told[member][0])
        ready, own = view.fit(text.waiting, self._head(member, text.waiting))
        if not ready:
            text.held = told[member][0]
            return False
        try:
            self._writer.commits[member](text, ready, own)
        except GaCError as error:
            answers.errors[row] = error
            return False
        text.waiting = text.waiting[len(ready) :]
        del told[member]
        return True

    def _sure(self, request: Request, told: Mapping[int, Tensor]) -> bool:
        assert request.threshold is not None
        gate = request.gate
        _, chance = View(self._union, told[gate][0], request.texts[gate].waiting).first()
        return chance >= request.threshold

    def _views(self, request: Request, told: Mapping[int, Tensor], members: Sequence[int]) -> dict[int, View]:
        return {m: View(self._union, told[m][0], request.texts[m].waiting) for m in members}

    # ---- choosing

    def _choose(
        self, batch: Sequence[Request], views: Mapping[int, dict[int, View]], answers: Answers
    ) -> dict[int, tuple[Text, float]]:
        """Per row the bytes and their score; all rows whose members disagree look ahead together."""
        chosen: dict[int, tuple[Text, float]] = {}
        votes: dict[int, Ahead] = {}
        wanted: dict[int, dict[int, tuple[int, ...]]] = {}

        def advance(row: int, told: Mapping[int, Tensor] | None) -> None:
            try:
                wanted[row] = next(votes[row]) if told is None else votes[row].send(told)
            except StopIteration as stop:
                chosen[row] = stop.value

        for row, seen in views.items():
            if batch[row].params.temperature > 0:
                chosen[row] = self._sample(batch[row], seen)
                continue
            fine, text = agreed([view.first()[0] for view in seen.values()])
            if fine:
                chosen[row] = text, self._score(seen, text)
            else:
                votes[row] = Vote(seen, self._weights, self._cut_of).run()
                advance(row, None)
        while wanted:
            paths = {(row, member): ids for row, members in wanted.items() for member, ids in members.items()}
            told = self._poll.look_ahead(batch, paths, answers)
            for (row, member), said in told.items():
                if not bool(torch.isfinite(said.sum())):
                    answers.errors.setdefault(row, InvalidLogitsError(self._names[member]))
            asked, wanted = list(wanted), {}
            for row in asked:
                if row not in answers.errors:
                    advance(row, {member: said for (r, member), said in told.items() if r == row})
        return chosen

    def _share(self, views: Mapping[int, View], member: int) -> float:
        """A member's weight; a gate that decides alone has it all."""
        return self._weights[member] if len(views) > 1 else 1.0

    def _score(self, views: Mapping[int, View], text: Text) -> float:
        return sum(
            self._share(views, member) * (view.token(None) if text is None else view.mass(text))
            for member, view in views.items()
        )

    def _sample(self, request: Request, views: Mapping[int, View]) -> tuple[Text, float]:
        """Draws a token from the average of what the members say, each without what waits."""
        combined, extra = self._combined(views)
        index = request.sampler.pick(combined)
        text = extra[index - len(self._union)] if index >= len(self._union) else self._union.data(index)
        return text, float(combined[index])

    def _combined(self, views: Mapping[int, View]) -> tuple[Tensor, list[bytes]]:
        """The average over the union, and after it over the texts that are no token of the union."""
        device = next(iter(views.values())).probs.device
        total = torch.zeros(len(self._union), device=device)
        extra: dict[bytes, float] = {}
        for member, view in views.items():
            share = self._share(views, member)
            if not view.waiting:
                total += share * view.probs.to(device)
                continue
            part = share * view.probs[view.range[0] : view.range[1]].to(device) / view.total
            places, others = self._stripped(view.waiting, *view.range)
            total.index_add_(0, torch.tensor([p for _, p in places], device=device), part[[i for i, _ in places]])
            for index, text in others:
                extra[text] = extra.get(text, 0.0) + float(part[index])
        if extra:
            total = torch.cat([total, torch.tensor(list(extra.values()), device=device)])
        return total, list(extra)

    def _stripped(self, waiting: bytes, low: int, high: int) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]:
        """Where the tokens of a range stand without what waits: (index, union id), and (index, text) where nowhere."""
        places, others = [], []
        for index in range(low, high):
            text = self._union.tokens[index][len(waiting) :]
            place = self._union.ids.get(text)
            if place is None:
                others.append((index - low, text))
            else:
                places.append((index - low, place))
        return places, others

    # ---- settling

    def _settle(self, request: Request, views: Mapping[int, View], ensembled: bool, text: Text, score: float) -> Picked:
        """Tells for every member whether the bytes are a token of its own, the start of one, or something else."""
        logprob = self._logprob(request, views, text, score)
        if text is None:
            return Picked(None, ensembled, logprob)
        average = sum(self._share(views, member) * view.token(text) for member, view in views.items())
        chosen_by: set[int] = set()
        waiting: dict[int, int] = {}
        held: dict[int, Tensor] = {}
        for member, view in views.items():
            full = view.waiting + text
            ready, own = view.fit(text, self._head(member, full), average)
            waiting[member] = len(full) - len(ready)
            if own:
                chosen_by.add(member)
            if not ready:
                held[member] = view.probs
        return Picked(text, ensembled, logprob, frozenset(chosen_by), waiting, held)

    def _head(self, member: int, data: bytes) -> bytes:
        """The first piece with which the member's tokenizer writes some bytes; none where it cannot."""
        cut = self._cut_of(member, data)
        return b"" if cut is None else cut.pieces[0]

    def _cut(self, member: int, data: bytes) -> Cut | None:
        tokenizer = self._tokenizers[member]
        try:
            ids = tokenizer.write(data)
        except UnwritableTextError:
            return None
        return Cut(ids, tuple(tokenizer.decode((index,)) for index in ids))

    def _logprob(self, request: Request, views: Mapping[int, View], text: Text, score: float) -> TokenLogprob | None:
        if request.params.logprobs is None:
            return None
        combined, extra = self._combined(views)
        best = torch.topk(combined, min(request.params.logprobs, combined.numel()))
        texts = [
            (extra[i - len(self._union)] if i >= len(self._union) else self._union.data(i)) or b""
            for i in best.indices.tolist()
        ]
        top = tuple((t, v) for t, v in zip(texts, best.values.log().tolist(), strict=True) if v > float("-inf"))
        return TokenLogprob(text or b"", float(torch.tensor(score).log()), top)
