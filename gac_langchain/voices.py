"""Chains that answer from retrieved documents, each of which the members read in a voice of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel, LanguageModelLike
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import PrivateAttr

from gac_core import RequestError, WarmReport, free_place, quote
from gac_langchain.settings import EnsembleSettings

_TEXT = PromptTemplate.from_template("{page_content}")


def create_voices_chain(
    llm: LanguageModelLike,
    prompt: BasePromptTemplate[Any],
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_variable_name: str = "context",
    document_weights: str | Sequence[float] | None = None,
    prior: bool | str | None = None,
    score_key: str | None = None,
) -> VoicesChain:
    """Returns a chain that answers from documents, each read in a voice of its own.

    Called as LangChain's ``create_stuff_documents_chain``, which writes all documents into one prompt. Here the prompt
    is read once for each document, and the members combine what they would say, token by token. Begin the prompt with
    the documents' variable, in the system message for example: the KV cache of a document that was read before is then
    reused for every other question.

    Args:
        llm: `ChatGaC` or `GaCLLM`, also with bound arguments or a configuration.
        prompt: The prompt, which contains the documents' variable once.
        output_parser: Parses the answer, for example ``StrOutputParser()``. Default: the answer of `ChatGaC` is the
            message, whose content has citations, that of `GaCLLM` a string.
        document_prompt: The text of a document, from ``page_content`` and its metadata. Default: its content alone.
        document_variable_name: The variable of the prompt that stands for a document, and the key of the documents
            among the inputs. Default ``"context"``.
        document_weights: As `gac_core.DocumentPrompt.weights`. Default: by score. ``"equal"`` ignores scores.
        prior: As `gac_core.DocumentPrompt.prior`. Default: the same prompt without a document.
        score_key: The key of the metadata that holds a document's score, which is larger for better documents: a
            distance is not. Default: ``"relevance_score"``, else ``"score"``.

    Returns:
        A runnable of a mapping with the prompt's variables and, under ``document_variable_name``, a list of documents.
        Without documents the prompt is answered with nothing in their place.

    Raises:
        RequestError: The prompt has no such variable, or the model is another one.
    """
    if document_variable_name not in prompt.input_variables:
        raise RequestError(
            f"the prompt must have the variable {quote(document_variable_name)}, which stands for a document; its "
            f"variables are: {', '.join(prompt.input_variables) or 'none'}"
        )
    inner = unbound(llm)[0]
    if isinstance(inner, BaseLanguageModel) and not isinstance(inner, EnsembleSettings):
        raise RequestError(f"llm must be ChatGaC or GaCLLM, not {type(inner).__name__}, which takes no documents")
    given = {"document_weights": document_weights, "prior": prior, "score_key": score_key}
    arguments = {name: value for name, value in given.items() if value is not None}
    template = VoicesTemplate(prompt, document_prompt or _TEXT, document_variable_name)
    return VoicesChain(template, llm, output_parser, arguments)


@dataclass(frozen=True)
class VoicesTemplate:
    """A prompt with a variable that stands for one document.

    Attributes:
        prompt: The prompt.
        document_prompt: The text of a document.
        variable: The variable.
    """

    prompt: BasePromptTemplate[Any]
    document_prompt: BasePromptTemplate[str]
    variable: str

    def documents(self, inputs: Mapping[str, Any]) -> list[Document]:
        """Returns the documents among the inputs of a call, each with its text as its content.

        Raises:
            RequestError: There is no list of documents, or a variable of the prompt has no value.
        """
        if not isinstance(inputs, Mapping) or self.variable not in inputs:
            raise RequestError(f"the inputs of the chain must be a mapping with documents as {quote(self.variable)}")
        if missing := [name for name in self.prompt.input_variables if name not in inputs]:
            raise RequestError(f"the inputs of the chain lack variables of the prompt: {', '.join(missing)}")
        return self.formatted(inputs[self.variable])

    def formatted(self, documents: Iterable[Document]) -> list[Document]:
        """Returns documents with their texts as their contents.

        Raises:
            RequestError: One is not a document.
        """
        if isinstance(documents, (str, Mapping)) or not isinstance(documents, Iterable):
            raise RequestError(f"{quote(self.variable)} must be a list of documents, not {quote(documents)}")
        return [self._formatted(document) for document in documents]

    def _formatted(self, document: Document) -> Document:
        if not isinstance(document, Document):
            raise RequestError(f"{quote(self.variable)} must have documents, not {quote(document)}")
        text = format_document(document, self.document_prompt)
        return Document(page_content=text, metadata=document.metadata, id=document.id)

    def place(self, inputs: Mapping[str, Any]) -> str:
        """Returns a place for a document that the prompt with these inputs does not contain."""
        return free_place(self._filled(inputs, "").to_string())

    def before_documents(self, inputs: Mapping[str, Any]) -> tuple[PromptValue, str]:
        """Returns the prompt as far as the documents depend on it, and its place for a document.

        Args:
            inputs: Values of the variables that stand before the documents; others are not needed.

        Raises:
            RequestError: A variable before the documents has no value.
        """
        missing = [name for name in self.prompt.input_variables if name not in inputs and name != self.variable]
        mark = self.place({**inputs, **{name: self._filling(name, "") for name in missing}})
        marks = {name: f"{mark}[{name}]" for name in missing}
        filled = {**inputs, **{name: self._filling(name, marks[name]) for name in missing}}
        place = self.place(filled)
        value = self._filled(filled, place)
        before = value.to_string().partition(place)[0]
        if unknown := [name for name in missing if marks[name] in before]:
            raise RequestError(
                f"variables of the prompt before the documents have no value: {', '.join(unknown)}; give them in "
                f"inputs={{...}}, or move {{{self.variable}}} to the front of the prompt"
            )
        return value, place

    def _filled(self, inputs: Mapping[str, Any], place: str) -> PromptValue:
        return self.prompt.format_prompt(**{**inputs, self.variable: place})

    def _filling(self, name: str, text: str) -> str | list[BaseMessage]:
        """Returns a value of a variable that contains a text: two messages where it stands for messages."""
        kind = self.prompt.input_types.get(name)
        return text if kind is None or kind is str else [HumanMessage(text), AIMessage(text)]


class VoicesChain(RunnableBindingBase[dict[str, Any], Any]):
    """A chain that answers from documents; made by `create_voices_chain`."""

    _template: VoicesTemplate = PrivateAttr()
    _llm: Any = PrivateAttr()

    def __init__(
        self,
        template: VoicesTemplate,
        llm: LanguageModelLike,
        output_parser: BaseOutputParser[Any] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        """Arguments as in `create_voices_chain`.

        Args:
            template: The prompt.
            llm: The model.
            output_parser: Parses the answer; None: the answer as it is.
            arguments: Arguments of the model's calls beside the documents and their place.
        """
        answer = _answerer(template, llm, output_parser, arguments)
        super().__init__(bound=RunnableLambda(answer, name="voices_chain"))
        self._template = template
        self._llm = llm.bind(**arguments)

    def warm(
        self, documents: Iterable[Document], inputs: Mapping[str, Any] | None = None, *, pin: bool = True
    ) -> WarmReport:
        """Computes the KV cache of documents, so that the first question about them is answered sooner.

        Args:
            documents: The documents, for example all those of a vector store.
            inputs: Values of those variables of the prompt that stand before the documents. Default none.
            pin: Whether they stay in the cache; False unpins documents that are in it. Default True.

        Raises:
            RequestError: A variable before the documents has no value, or the chain's model is not a `ChatGaC` or
                `GaCLLM` with or without bound arguments.
        """
        model, arguments, prompt = self._warmed(inputs)
        return model.warm(prompt, self._template.formatted(documents), pin=pin, **arguments)

    async def awarm(
        self, documents: Iterable[Document], inputs: Mapping[str, Any] | None = None, *, pin: bool = True
    ) -> WarmReport:
        """`warm` for event loops."""
        model, arguments, prompt = self._warmed(inputs)
        return await model.awarm(prompt, self._template.formatted(documents), pin=pin, **arguments)

    def _warmed(self, inputs: Mapping[str, Any] | None) -> tuple[EnsembleSettings, dict[str, Any], PromptValue]:
        model, arguments = unbound(self._llm)
        if not isinstance(model, EnsembleSettings):
            raise RequestError(
                f"a chain of {type(model).__name__} cannot warm documents; call warm of the ChatGaC or GaCLLM in it"
            )
        prompt, place = self._template.before_documents(inputs or {})
        return model, {**arguments, "place": place}, prompt


def _answerer(
    template: VoicesTemplate,
    llm: LanguageModelLike,
    output_parser: BaseOutputParser[Any] | None,
    arguments: Mapping[str, Any],
) -> Callable[[dict[str, Any]], Runnable[dict[str, Any], Any]]:
    """Returns the function that makes the chain for given inputs; arguments as in `VoicesChain`."""

    def answer(inputs: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        documents = template.documents(inputs)
        place = template.place(inputs) if documents else ""
        asked = {"documents": documents, "place": place, **arguments} if documents else {}
        filled = RunnablePassthrough.assign(**{template.variable: lambda _: place})
        chain: Runnable[dict[str, Any], Any] = filled | template.prompt | llm.bind(**asked)
        return chain if output_parser is None else chain | output_parser

    return answer


def unbound(llm: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the model within bindings, and the arguments that are bound to it."""
    if not isinstance(llm, RunnableBindingBase):
        return llm, {}
    model, arguments = unbound(llm.bound)
    return model, {**arguments, **llm.kwargs}
