"""`VoicesSynthesizer`: a response synthesizer that reads each retrieved node in a voice of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation.events.llm import LLMPredictEndEvent, LLMPredictStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import BaseNode, NodeWithScore, QueryType
from llama_index.core.settings import Settings
from llama_index.core.types import RESPONSE_TEXT_TYPE
from llama_index_instrumentation import get_dispatcher

from gac_core import ConfigError, Document, DocumentPrompt, RequestError, WarmReport, free_place, quote
from gac_llamaindex.calls import ModelCall
from gac_llamaindex.llm import GaCLLM
from gac_llamaindex.nodes import SourceNodes, atokens, tokens, without_nodes
from gac_llamaindex.structured import Response as LLMResponse
from gac_llamaindex.structured import read_object, response_text

_dispatcher = get_dispatcher(__name__)


class VoicesSynthesizer(BaseSynthesizer):
    """Answers from retrieved nodes, each of which every member reads in a voice of its own.

    For ``index.as_query_engine(llm=llm, response_synthesizer=...)``, `RetrieverQueryEngine` and engines made of it.
    The nodes are the documents of a `gac_core.DocumentPrompt`, by their ids and with their scores.

    In the response, the score of each of the ``source_nodes`` is its share of the answer
    (`gac_core.RequestOutput.document_shares`), and the largest stands first. The metadata have, beside the metadata of
    each node by its document id:

    - ``citations``: a mapping with the fields of `gac_core.Citation` for each span of the answer;
    - ``doubt``: a mapping with the fields of `gac_core.Doubt`;
    - ``document_shares`` and ``retrieval_scores``: by document id.

    Without nodes these are empty, and ``doubt`` is None. A streamed response has them after its last token; until then
    its source nodes are as retrieved. The document id is the node's; the second node with an id and another text gets
    ``"#2"`` at its end.

    Nodes are never truncated. One that does not fit into a member's context is a `gac_core.PromptTooLongError` that
    names both.

    Args:
        llm: The ensemble. Default: ``Settings.llm``.
        text_qa_template: The prompt, with ``{context_str}`` once, where the node's text stands, and ``{query_str}``.
            With the query after the context, KV caches of nodes are used again for other queries. Default: that of
            LlamaIndex's other synthesizers.
        streaming: Whether responses are streamed. Default False.
        output_cls: A pydantic class whose JSON schema the answer must fit; the response is an object of it, or the
            object's JSON if it is streamed. Default None.
        callback_manager: Handlers of LlamaIndex's callbacks. Default: those of ``Settings``.
        empty_response: The response where there are no nodes. Default: LlamaIndex's.
        document_weights: The weights of nodes: ``"scores"`` (default) or ``"equal"``, as in `gac_core.DocumentPrompt`.
            Choose ``"equal"`` where scores are distances, or where some nodes have none, such as those that a
            postprocessor adds.
        prior: Whether the prompt is also read without a node, as in `gac_core.DocumentPrompt`; a string stands in the
            node's place then. Default True.
        combine_documents: How documents are combined, as in `gac_core.SamplingParams`. Default: as ``llm`` does.

    Raises:
        ConfigError: ``llm`` is not a `GaCLLM`, or ``document_weights`` is another value.

    Example:
        >>> synthesizer = VoicesSynthesizer(GaCLLM(models=["model-a", "model-b"]))  # doctest: +SKIP
        >>> engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)  # doctest: +SKIP
        >>> engine.query("Who built the bridge?").metadata["citations"]  # doctest: +SKIP
    """

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        text_qa_template: BasePromptTemplate | None = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        callback_manager: CallbackManager | None = None,
        empty_response: str | None = None,
        document_weights: Literal["scores", "equal"] = "scores",
        prior: bool | str = True,
        combine_documents: str | None = None,
    ) -> None:
        llm = Settings.llm if llm is None else llm
        if not isinstance(llm, GaCLLM):
            raise ConfigError(
                f"VoicesSynthesizer needs a GaCLLM, not a {type(llm).__name__}; pass llm=GaCLLM(...), or set "
                "Settings.llm (for objects, set output_cls instead of as_structured_llm)"
            )
        if document_weights not in ("scores", "equal"):
            raise ConfigError(f"document_weights must be 'scores' or 'equal', not {quote(document_weights)}")
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            streaming=streaming,
            output_cls=output_cls,
            empty_response=empty_response,
        )
        self._llm: GaCLLM = llm
        self._text_qa_template = text_qa_template or DEFAULT_TEXT_QA_PROMPT_SEL
        self._voices = {"document_weights": document_weights, "prior": prior, "combine_documents": combine_documents}

    # ---- prompts

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    def _call(self, query_str: str, documents: Sequence[Document | str], values: Mapping[str, Any]) -> ModelCall:
        """Returns the call that answers a query from documents.

        Args:
            query_str: The query.
            documents: The documents.
            values: Other variables of the template.

        Raises:
            RequestError: The template does not contain ``{context_str}`` once.
        """
        place = free_place(self._rendered(query_str, "", values, {}).text)
        given = {name: value for name, value in self._voices.items() if value is not None}
        call = self._rendered(query_str, place, values, {**given, "documents": documents, "place": place})
        found = call.text.count(place)
        if found != 1:
            raise RequestError(f"text_qa_template must contain {{context_str}} once, not {found} times")
        return call

    def _rendered(
        self, query_str: str, context_str: str, values: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> ModelCall:
        """Returns the call with a text in the place of the context."""
        template, llm = self._text_qa_template, self._llm
        prompt_args = {**values, "query_str": query_str, "context_str": context_str}
        if self._output_cls is not None:
            return ModelCall(llm, *llm._prepared(self._output_cls, template, arguments, prompt_args))
        if llm.metadata.is_chat_model:
            return ModelCall(llm, llm._get_messages(template, **prompt_args), arguments)
        return ModelCall(llm, llm._get_prompt(template, **prompt_args), arguments)

    def _reported(self, query_str: str, documents: Sequence[Document | str], values: Mapping[str, Any]) -> ModelCall:
        """`_call`, with the event of its start."""
        texts = [each if isinstance(each, str) else each.text for each in documents]
        template_args = {**values, "query_str": query_str, "context_str": texts}
        _dispatcher.event(LLMPredictStartEvent(template=self._text_qa_template, template_args=template_args))
        return self._call(query_str, documents, values)

    def _result(self, response: LLMResponse) -> str | BaseModel:
        """Returns the text of an answer, or its object."""
        text = response_text(response)
        result = self._llm._parse_output(text) if self._output_cls is None else read_object(self._output_cls, response)
        _dispatcher.event(LLMPredictEndEvent(output=text))
        return result or self._empty_response

    # ---- warming

    def warm(
        self, nodes: Sequence[NodeWithScore | BaseNode], *, pin: bool = True, **response_kwargs: Any
    ) -> WarmReport:
        """Reads nodes before the first query: their KV caches are kept, and answers from them begin sooner.

        For nodes that are retrieved often, or all nodes of a small index. Answers are the same.

        Args:
            nodes: The nodes, as later retrieved.
            pin: Whether they are kept until they are unpinned; False unpins them. Default True.
            **response_kwargs: Values of other variables of the template.

        Returns:
            What was computed and kept, as `gac_core.Ensemble.warm` does.

        Raises:
            RequestError: ``{query_str}`` precedes ``{context_str}`` in the template; a node has no text or is too long;
                or the pinned nodes exceed ``document_cache_gib``.
        """
        return self._llm.ensemble.warm(**self._warmed(nodes, response_kwargs), pin=pin)

    async def awarm(
        self, nodes: Sequence[NodeWithScore | BaseNode], *, pin: bool = True, **response_kwargs: Any
    ) -> WarmReport:
        """`warm` without blocking the event loop."""
        return await self._llm.ensemble.awarm(**self._warmed(nodes, response_kwargs), pin=pin)

    def _warmed(self, nodes: Sequence[NodeWithScore | BaseNode], values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `gac_core.Ensemble.warm`."""
        scored = [NodeWithScore(node=node) if isinstance(node, BaseNode) else node for node in nodes]
        documents = SourceNodes.of(scored).documents
        # What is kept does not depend on the query, if the query follows the context.
        calls = [self._call(query_str, documents[:1], values) for query_str in ("", "?")]
        before = {call.text.partition(call.arguments["place"])[0] for call in calls}
        if len(before) > 1:
            raise RequestError(
                "in text_qa_template {query_str} precedes {context_str}: nodes are then read anew for every query, and "
                "cannot be read before; put {context_str} first"
            )
        request = calls[0].request()
        prompt = cast(DocumentPrompt, request["prompt"])
        return {
            "prompt": prompt.prompt,
            "documents": documents,
            "params": request["params"],
            "place": prompt.place,
        }

    # ---- answers from texts

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        """Answers from texts, without their ids and scores.

        Args:
            query_str: The query.
            text_chunks: The texts, each a document.
            **response_kwargs: Values of other variables of the template.

        Returns:
            The text; its parts if ``streaming``; an object with ``output_cls``.

        Raises:
            RequestError: The template, or a text, is wrong.
        """
        call = self._reported(query_str, text_chunks, response_kwargs)
        return tokens(call.stream()) if self._streaming else self._result(call.answer())

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response` without blocking the event loop."""
        call = self._reported(query_str, text_chunks, response_kwargs)
        return atokens(await call.astream()) if self._streaming else self._result(await call.aanswer())

    # ---- answers from nodes

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answers from nodes; see the class.

        Args:
            query: The query.
            nodes: The nodes, as a retriever returns them.
            additional_source_nodes: Nodes that follow in the response's source nodes, with their own scores. Default
                none.
            **response_kwargs: Values of other variables of the template.

        Raises:
            RequestError: The template, or a node, is wrong.
            PromptTooLongError: A node does not fit into a member's context.
        """
        if not nodes:
            return without_nodes(super().synthesize(query, nodes, additional_source_nodes, **response_kwargs))
        text = query if isinstance(query, str) else query.query_str
        sources = SourceNodes.of(nodes, additional_source_nodes)
        _dispatcher.event(SynthesizeStartEvent(query=query))
        with self._callback_manager.event(CBEventType.SYNTHESIZE, {EventPayload.QUERY_STR: text}) as event:
            call = self._reported(text, sources.documents, response_kwargs)
            response: RESPONSE_TYPE
            if self._streaming:
                response = sources.streamed(call.stream())
            else:
                answer = call.answer()
                response = sources.response(self._result(answer), answer.raw or {})
            event.on_end({EventPayload.RESPONSE: response})
        _dispatcher.event(SynthesizeEndEvent(query=query, response=response))
        return response

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """`synthesize` without blocking the event loop; cancelling it frees the engine."""
        if not nodes:
            return without_nodes(await super().asynthesize(query, nodes, additional_source_nodes, **response_kwargs))
        text = query if isinstance(query, str) else query.query_str
        sources = SourceNodes.of(nodes, additional_source_nodes)
        _dispatcher.event(SynthesizeStartEvent(query=query))
        with self._callback_manager.event(CBEventType.SYNTHESIZE, {EventPayload.QUERY_STR: text}) as event:
            call = self._reported(text, sources.documents, response_kwargs)
            response: RESPONSE_TYPE
            if self._streaming:
                response = sources.astreamed(await call.astream())
            else:
                answer = await call.aanswer()
                response = sources.response(self._result(answer), answer.raw or {})
            event.on_end({EventPayload.RESPONSE: response})
        _dispatcher.event(SynthesizeEndEvent(query=query, response=response))
        return response
