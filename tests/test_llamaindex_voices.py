"""`VoicesSynthesizer` and calls with documents: as the ensemble itself, in every way."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, ensemble_of, pair, talking_pairs
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import NodeWithScore, TextNode

from gac_core import ConfigError, Document, DocumentPrompt, PromptTooLongError, RequestError, UnknownArgumentError
from gac_llamaindex import GaCLLM, VoicesSynthesizer

TEXTS = {
    "bridges": "The Torno Bridge was built in 1874. It stands in Halkus.",
    "inns": "The Silver Inn stands in Marwin. Its keeper is Rufo Tann.",
    "museums": "The Museum of Salt stands in Orlen. Entry costs four crowns.",
}
QUESTION = "In which town is the Torno Bridge?"
ASK = "Passages:\n\n{context_str}\n\nQuestion: {query_str}"
TEMPLATE = ChatPromptTemplate([ChatMessage("Answer from the passages.", role="system"), ChatMessage(ASK, role="user")])


def node(name: str, score: float | None, text: str | None = None) -> NodeWithScore:
    return NodeWithScore(node=TextNode(id_=name, text=TEXTS.get(name, "") if text is None else text), score=score)


NODES = [node("inns", 0.25), node("bridges", 0.5), node("museums", 0.1)]


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=12)


@pytest.fixture
def synthesizer(llm):
    return VoicesSynthesizer(llm, text_qa_template=TEMPLATE)


def direct(ensemble, question=QUESTION, place="{document}", **fields):
    messages = [
        {"role": "system", "content": "Answer from the passages."},
        {"role": "user", "content": f"Passages:\n\n{place}\n\nQuestion: {question}"},
    ]
    documents = [Document(each.text, each.node_id, each.score) for each in NODES]
    return ensemble.generate(DocumentPrompt(messages, documents, place=place, **fields), max_tokens=12)


def check(response, output):
    """Checks that a response has an output's text, shares, citations and doubt."""
    assert str(response) == output.text != ""
    shares = response.metadata["document_shares"]
    assert shares == pytest.approx(dict(output.document_shares), abs=1e-4)
    assert {each.node_id: each.score for each in response.source_nodes} == shares
    assert [each.score for each in response.source_nodes] == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1)
    assert response.metadata["retrieval_scores"] == {"inns": 0.25, "bridges": 0.5, "museums": 0.1}
    found = [(each["start"], each["end"], each["document"]) for each in response.metadata["citations"]]
    assert found == [(each.start, each.end, each.document) for each in output.citations] != []
    assert response.metadata["doubt"]["share"] == pytest.approx(output.doubt.share, abs=1e-4)


# ---- the synthesizer


async def test_every_way_answers_as_the_ensemble_itself(ensemble, llm, synthesizer):
    output = direct(ensemble)
    check(synthesizer.synthesize(QUESTION, NODES), output)
    check(await synthesizer.asynthesize(QUESTION, NODES[::-1]), output)
    streaming = VoicesSynthesizer(llm, text_qa_template=TEMPLATE, streaming=True)
    response = streaming.synthesize(QUESTION, NODES)
    assert response.source_nodes == NODES
    pieces = list(response.response_gen)
    assert len(pieces) > 2
    response.response_txt = "".join(pieces)
    check(response, output)
    response = await streaming.asynthesize(QUESTION, NODES)
    check(await response.get_response(), output)


def test_texts_alone_are_documents_of_equal_weight(ensemble, llm, synthesizer):
    output = direct(ensemble, weights="equal")
    texts = [each.text for each in NODES]
    assert synthesizer.get_response(QUESTION, texts) == output.text
    streaming = VoicesSynthesizer(llm, text_qa_template=TEMPLATE, streaming=True)
    assert "".join(streaming.get_response(QUESTION, texts)) == output.text
    equal = VoicesSynthesizer(llm, text_qa_template=TEMPLATE, document_weights="equal", prior=False)
    assert str(equal.synthesize(QUESTION, NODES)) == output.text


def test_text_of_users_cannot_contain_the_place(ensemble, synthesizer):
    question = "What are {document} and {context_str}?"
    output = direct(ensemble, question, place="{document-1}")
    check(synthesizer.synthesize(question, NODES), output)


def test_nodes_with_one_id_or_one_text(synthesizer):
    twice = [node("a", 0.5, TEXTS["inns"]), node("a", 0.4, TEXTS["bridges"]), node("a", 0.6, TEXTS["inns"])]
    twice[1].node.metadata = {"page": 2}
    twice[1].node.excluded_llm_metadata_keys = ["page"]
    response = synthesizer.synthesize(QUESTION, twice)
    assert (response.metadata["a"], response.metadata["a#2"]) == ({}, {"page": 2})
    assert response.metadata["retrieval_scores"] == {"a": 0.6, "a#2": 0.4}
    assert len(response.source_nodes) == 2
    twins = [node("a", 0.5, TEXTS["inns"]), node("b", 0.4, TEXTS["inns"]), node("c", 0.1, TEXTS["bridges"])]
    response = synthesizer.synthesize(QUESTION, twins)
    scores = {each.node_id: each.score for each in response.source_nodes}
    assert scores["a"] == scores["b"] == pytest.approx(1 - scores["c"])


def test_the_gate_alone_answers_from_one_node(llm):
    response = VoicesSynthesizer(llm.with_threshold(0.0), text_qa_template=TEMPLATE).synthesize(QUESTION, NODES)
    assert [(each.node_id, each.score) for each in response.source_nodes] == [
        ("bridges", 1),
        ("inns", 0),
        ("museums", 0),
    ]


def test_members_without_a_template_continue_the_text():
    template = PromptTemplate(ASK)
    documents = [Document(each.text, each.node_id, each.score) for each in NODES]
    prompt = f"Passages:\n\n{{document}}\n\nQuestion: {QUESTION}"
    with ensemble_of(talking_pairs(templates=False)) as plain:
        output = plain.generate(DocumentPrompt(prompt, documents), max_tokens=4)
        llm = GaCLLM(ensemble=plain, max_tokens=4)
        for streaming in (False, True):
            synthesizer = VoicesSynthesizer(llm, text_qa_template=template, streaming=streaming)
            assert str(synthesizer.synthesize(QUESTION, NODES)) == output.text


def test_additional_nodes_follow_with_their_scores(synthesizer):
    extra = node("more", 0.9, "Not read.")
    response = synthesizer.synthesize(QUESTION, NODES, additional_source_nodes=[extra])
    assert response.source_nodes[-1] is extra
    assert "more" not in response.metadata["document_shares"]


async def test_no_nodes_is_an_empty_response(llm):
    for streaming in (False, True):
        synthesizer = VoicesSynthesizer(llm, streaming=streaming, empty_response="Nothing found.")
        assert str(synthesizer.synthesize(QUESTION, [])) == "Nothing found."
        response = await synthesizer.asynthesize(QUESTION, [])
        absent = {"citations": [], "doubt": None, "document_shares": {}, "retrieval_scores": {}}
        assert response.metadata == absent == synthesizer.synthesize(QUESTION, []).metadata
        assert str(await response.get_response() if streaming else response) == "Nothing found."


class Town(BaseModel):
    """Where something is."""

    town: str = Field(max_length=6)


async def test_objects_have_citations(llm):
    synthesizer = VoicesSynthesizer(llm.model_copy(update={"max_tokens": 40}), output_cls=Town)
    response = synthesizer.synthesize(QUESTION, NODES)
    assert isinstance(response.response, Town)
    assert response.metadata["citations"]
    assert (await synthesizer.asynthesize(QUESTION, NODES)).response == response.response
    synthesizer._streaming = True
    assert Town.model_validate_json(str(synthesizer.synthesize(QUESTION, NODES))) == response.response


def test_wrong_prompts_nodes_and_models_are_refused(llm, synthesizer):
    for text, found in (("{query_str}", 0), ("{context_str} {context_str} {query_str}", 2)):
        wrong = VoicesSynthesizer(llm, text_qa_template=PromptTemplate(text))
        with pytest.raises(
            RequestError, match=f"text_qa_template must contain {{context_str}} once, not {found} times"
        ):
            wrong.synthesize(QUESTION, NODES)
    with pytest.raises(RequestError, match="node 'blank' has no text"):
        synthesizer.synthesize(QUESTION, [*NODES, node("blank", 0.1)])
    with pytest.raises(PromptTooLongError, match=r"'long'.*'ash'") as error:
        synthesizer.synthesize(QUESTION, [*NODES, node("long", 0.2, "bridge " * 1100)])
    assert error.value.document == "long"
    with pytest.raises(ConfigError, match="needs a GaCLLM, not a MockLLM"):
        VoicesSynthesizer(MockLLM())
    with pytest.raises(ConfigError, match="output_cls instead of as_structured_llm"):
        VoicesSynthesizer(llm.as_structured_llm(Town))
    with pytest.raises(ConfigError, match="'scores' or 'equal', not 'best'"):
        VoicesSynthesizer(llm, document_weights="best")


async def test_warm_nodes_are_not_read_again():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        synthesizer = VoicesSynthesizer(GaCLLM(ensemble=one, max_tokens=4), text_qa_template=TEMPLATE, prior=False)
        report = synthesizer.warm([each.node for each in NODES])
        assert report.documents == ("inns", "bridges", "museums")
        name = one.names[0]
        kept = report.members[name]
        assert kept.documents == 3
        again = await synthesizer.awarm(NODES, pin=False)
        assert again.members[name].tokens == 0 < again.members[name].reused_tokens
        call = synthesizer._call(QUESTION, [Document(each.text) for each in NODES[::-1]], {})
        assert call.answer().raw["gac"]["members"][name]["reused_tokens"] >= again.members[name].reused_tokens


def test_queries_before_the_context_cannot_be_warmed(llm):
    synthesizer = VoicesSynthesizer(llm, text_qa_template=PromptTemplate("{query_str}\n{context_str}"))
    with pytest.raises(RequestError, match=r"{query_str} precedes {context_str}"):
        synthesizer.warm(NODES)


# ---- calls of the model


async def test_calls_of_the_model_take_documents_and_nodes(ensemble, llm):
    output = direct(ensemble)
    messages = [
        ChatMessage("Answer from the passages.", role="system"),
        ChatMessage(f"Passages:\n\n{{document}}\n\nQuestion: {QUESTION}", role="user"),
    ]
    answer = llm.chat(messages, documents=NODES)
    assert answer.message.content == output.text
    assert answer.raw["document_shares"] == pytest.approx(dict(output.document_shares), abs=1e-4)
    streamed = [each async for each in await llm.astream_chat(messages, documents=NODES)]
    assert streamed[-1].message.content == output.text
    assert streamed[-1].raw["doubt"]["lift"] == pytest.approx(answer.raw["doubt"]["lift"], rel=1e-4)
    prompt = f"Passages:\n\n<here>\n\nQuestion: {QUESTION}"
    given = {"documents": list(TEXTS.values()), "place": "<here>", "document_weights": [3, 1, 1], "prior": "(none)"}
    text = llm.complete(prompt, **given).text
    assert (await llm.acomplete(prompt, **given)).text == text
    asked = DocumentPrompt([{"role": "user", "content": prompt}], given["documents"], [3, 1, 1], "(none)", "<here>")
    assert ensemble.generate(asked, max_tokens=12).text == text
    raw = DocumentPrompt(prompt, given["documents"], place="<here>")
    assert llm.complete(prompt, formatted=True, documents=given["documents"], place="<here>").text == (
        ensemble.generate(raw, max_tokens=12).text
    )


def test_wrong_documents_are_refused(llm):
    with pytest.raises(RequestError, match="prior without documents"):
        llm.complete("Who?", prior=False)
    with pytest.raises(RequestError, match="once, not 0 times"):
        llm.complete("Who?", documents=["a"])
    with pytest.raises(UnknownArgumentError, match="document_weights"):
        llm.complete("{document}", documents=["a"], document_weight=[1])
    with pytest.raises(RequestError, match="node 'blank' has no text"):
        llm.chat([ChatMessage("{document}")], documents=[node("blank", 1.0).node])
