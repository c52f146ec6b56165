"""`Warming`: the methods of an ensemble that keep documents in the KV caches of its members; `WarmReport`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gac_core.chat.conversation import Prompt
from gac_core.checks import check_flag
from gac_core.config import EnsembleConfig
from gac_core.engine.answer_stream import acollect_batch
from gac_core.engine.calls import Call, new_calls
from gac_core.engine.delivery import collect_batch
from gac_core.errors import RequestError
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.voices import PLACE, Document, DocumentPrompt, Documents, as_documents

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.engine.session import Session


@dataclass(frozen=True)
class WarmedMember:
    """What one member did for `Ensemble.warm`.

    Attributes:
        documents: How many of the documents it keeps: all, but for those that are not pinned and larger than what
            pinned ones leave of ``document_cache_gib``; 0 for a member that runs row by row or reads images of the
            prompt.
        tokens: Tokens that it computed.
        reused_tokens: Tokens that its KV cache held already.
        nbytes: Memory of the documents that it keeps.
    """

    documents: int = 0
    tokens: int = 0
    reused_tokens: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class WarmReport:
    """What came of `Ensemble.warm`.

    Attributes:
        documents: The ids of the documents, each text once.
        members: What each member did, by name.
    """

    documents: tuple[str, ...]
    members: Mapping[str, WarmedMember]


class Warming:
    """The methods of `Ensemble` that keep documents in the KV caches of its members."""

    config: EnsembleConfig
    _session: Session
    _input_processor: InputProcessor

    def warm(
        self,
        prompt: Prompt,
        documents: Documents,
        params: SamplingParams | None = None,
        *,
        place: str = PLACE,
        pin: bool = True,
    ) -> WarmReport:
        """Computes the keys and values of documents before they are asked about, and keeps them.

        A later request that begins in the same way, up to the end of a document, does not compute them again, in any
        order and company of documents; its answer is the same. They are kept beside the KV caches of requests, up to
        ``document_cache_gib`` per member, and are lost with the process of a member. Documents of requests are kept in
        the same way, without a pin.

        Args:
            prompt: As for `DocumentPrompt`: what precedes the place of the document must be that of later requests;
                what follows it has no effect.
            documents: As in `DocumentPrompt`; any number of them.
            params: Of them ``parse_special`` and ``timeout`` have an effect. Default `SamplingParams()`.
            place: As in `DocumentPrompt`.
            pin: Whether the documents are kept until they are unpinned. False unpins them: beyond
                ``document_cache_gib`` the least recently used of them are dropped. Default True.

        Raises:
            RequestError: An argument is wrong; the pinned documents of a member would take more than
                ``document_cache_gib``, in which case those that fitted stay; or no member can keep documents.
            MemberError: A member failed, also with ``on_member_failure="drop"``.
            RequestTimeoutError: It took longer than ``timeout``.
            EngineClosedError: The ensemble is closed.
        """
        asked = _distinct(documents)
        return self._report(asked, collect_batch(self._session, self._warm_calls(prompt, asked, params, place, pin)))

    async def awarm(
        self,
        prompt: Prompt,
        documents: Documents,
        params: SamplingParams | None = None,
        *,
        place: str = PLACE,
        pin: bool = True,
    ) -> WarmReport:
        """`warm` for event loops; cancelling it frees the engine."""
        asked = _distinct(documents)
        calls = self._warm_calls(prompt, asked, params, place, pin)
        return self._report(asked, await acollect_batch(self._session, calls, self.config.max_batch_size))

    def _warm_calls(
        self, prompt: Prompt, documents: Sequence[Document], params: SamplingParams | None, place: str, pin: bool
    ) -> list[Call]:
        """Returns a call for each document, so that as many are read at once as requests run."""
        check_flag(RequestError, "pin", pin)
        tasks = [
            partial(self._input_processor.warm_request, DocumentPrompt(prompt, [each], prior=False, place=place), pin)
            for each in documents
        ]
        return new_calls(self._session, tasks, params, {}, None)

    def _report(self, documents: Sequence[Document], outputs: Sequence[RequestOutput]) -> WarmReport:
        members: dict[str, WarmedMember] = {}
        for name in self.config.names:
            own = [output.stats.members[name] for output in outputs if name in output.stats.members]
            members[name] = WarmedMember(
                documents=sum(stats.kept_bytes > 0 for stats in own),
                tokens=sum(stats.tokens for stats in own),
                reused_tokens=sum(stats.reused_tokens for stats in own),
                nbytes=sum(stats.kept_bytes for stats in own),
            )
        return WarmReport(tuple(str(document.id) for document in documents), members)


def _distinct(documents: Documents) -> list[Document]:
    """Returns documents with different texts; of equal ones the first."""
    by_text: dict[str, Document] = {}
    for document in as_documents(documents):
        by_text.setdefault(document.text, document)
    return list(by_text.values())
