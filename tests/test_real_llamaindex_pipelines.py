"""LlamaIndex's ingestion, evaluators, structured output, graphs and SQL on real models.

What is asserted holds for any model: forms, types, counts, and texts that the ensemble itself generates.
"""

from __future__ import annotations

import json
from typing import Literal

import pytest
from llama_index.core import Document, DocumentSummaryIndex, PropertyGraphIndex, SQLDatabase
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.evaluation import (
    BatchEvalRunner,
    CorrectnessEvaluator,
    FaithfulnessEvaluator,
    GuidelineEvaluator,
    PairwiseComparisonEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.evaluation.guideline import EvaluationData
from llama_index.core.extractors import (
    KeywordExtractor,
    PydanticProgramExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.query_engine import NLSQLTableQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from pydantic import BaseModel, Field
from real_index import QUESTION, TEXTS, asked, both, embedding  # noqa: F401
from sqlalchemy import create_engine, text

from gac_core import Grammar
from gac_llamaindex import GaCLLM

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:asyncio_module.. is deprecated:DeprecationWarning"),
]


class Place(BaseModel):
    """A place."""

    name: str = Field(max_length=12)
    kind: Literal["bridge", "inn"]


@pytest.fixture
def llm(both):
    return GaCLLM(ensemble=both, max_tokens=8)


@pytest.fixture
def roomy(both):
    return GaCLLM(ensemble=both, max_tokens=60)


# ---- ingestion


def test_extractors_write_metadata(llm, roomy, asked):
    program = FunctionCallingProgram.from_defaults(output_cls=Place, prompt_template_str="{input}", llm=roomy)
    one = {"num_workers": 1, "show_progress": False}
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(),
            TitleExtractor(llm=llm, nodes=1, **one),
            SummaryExtractor(llm=llm, summaries=["self"], **one),
            QuestionsAnsweredExtractor(llm=llm, questions=1, **one),
            KeywordExtractor(llm=llm, keywords=2, **one),
            PydanticProgramExtractor(program=program, input_key="input", **one),
        ]
    )
    (node,) = pipeline.run(documents=[Document(text=TEXTS["bridge"])])
    candidate, title, summary, questions, keywords, place = asked.answers()
    assert candidate
    assert node.metadata["document_title"] == title
    assert node.metadata["section_summary"] == summary.strip()
    assert node.metadata["questions_this_excerpt_can_answer"] == questions.strip()
    assert node.metadata["excerpt_keywords"] == keywords.strip()
    assert Place(name=node.metadata["name"], kind=node.metadata["kind"])
    assert node.metadata["kind"] in place or not place


# ---- evaluators

YES_NO = Grammar.choices(["YES", "NO"])


def judges(llm):
    """Evaluators, each of a judge whose answers have the form that it reads."""
    return {
        "faithfulness": FaithfulnessEvaluator(llm=llm.with_grammar(YES_NO)),
        "relevancy": RelevancyEvaluator(llm=llm.with_grammar(YES_NO)),
        "correctness": CorrectnessEvaluator(llm=llm.with_grammar(Grammar.regex(r"[1-5]\.0\n[A-Z][a-z ]{5,30}\."))),
        "guideline": GuidelineEvaluator(
            guidelines="Be brief.",
            llm=llm.with_grammar(Grammar.json_schema(EvaluationData.model_json_schema(), closes=True)),
        ),
        "pairwise": PairwiseComparisonEvaluator(
            llm=llm.with_grammar(Grammar.regex(r"[A-Z][a-z ]{5,30}\.\n\[\[[ABC]\]\]")), enforce_consensus=False
        ),
    }


async def test_evaluators_read_the_judges_answers(roomy, asked):
    given = {"query": QUESTION, "response": "Melka Dorin.", "contexts": [TEXTS["bridge"]], "reference": "Melka Dorin."}
    for name, judge in judges(roomy).items():
        second = {"second_response": "Rufo Tann."} if name == "pairwise" else {}
        result = await judge.aevaluate(**given, **second)
        answer = asked.answers()[-1]
        assert not result.invalid_result
        if name in ("faithfulness", "relevancy"):
            assert (result.passing, result.score) == (answer == "YES", float(answer == "YES"))
        elif name == "correctness":
            assert (result.score, result.passing) == (float(answer[:3]), float(answer[:3]) >= 4)
            assert result.feedback in answer
        elif name == "guideline":
            assert (result.passing, result.feedback) == (json.loads(answer)["passing"], json.loads(answer)["feedback"])
        else:
            assert result.score == {"A": 1.0, "B": 0.0, "C": 0.5}[answer[-3]]


async def test_evaluators_run_side_by_side(roomy, asked):
    evaluators = {name: judge for name, judge in judges(roomy).items() if name in ("faithfulness", "correctness")}
    runner = BatchEvalRunner(evaluators, workers=4, show_progress=False)
    results = await runner.aevaluate_response_strs(
        queries=[QUESTION] * 2,
        response_strs=["Melka Dorin.", "Rufo Tann."],
        contexts_list=[[TEXTS["bridge"]]] * 2,
        correctness={"reference": ["Melka Dorin."] * 2},
    )
    assert {name: len(each) for name, each in results.items()} == {"faithfulness": 2, "correctness": 2}
    assert all(result.score is not None for each in results.values() for result in each)
    assert len(asked.take()) >= 4


# ---- structured output


async def test_objects_in_every_way(roomy):
    prompt = "Describe this place: {text}"
    structured = roomy.as_structured_llm(Place)
    asked = prompt.format(text=TEXTS["inn"])
    place = structured.complete(asked).raw
    assert isinstance(place, Place)
    assert structured.chat([ChatMessage(asked)]).raw == place == (await structured.acomplete(asked)).raw
    assert list(structured.stream_chat([ChatMessage(asked)]))[-1].raw == place
    text_program = LLMTextCompletionProgram.from_defaults(
        output_cls=Place,
        prompt_template_str=prompt,
        llm=roomy.with_grammar(Grammar.json_schema(Place.model_json_schema())),
    )
    call_program = FunctionCallingProgram.from_defaults(output_cls=Place, prompt_template_str=prompt, llm=roomy)
    for program in (text_program, call_program):
        made = program(text=TEXTS["inn"])
        assert isinstance(made, Place)
        assert await program.acall(text=TEXTS["inn"]) == made


# ---- indexes that ask a model


def test_summaries_of_documents(llm, asked):
    documents = [Document(text=text, id_=name) for name, text in TEXTS.items()]
    index = DocumentSummaryIndex.from_documents(
        documents,
        llm=llm,
        embed_model=embedding(),
        response_synthesizer=get_response_synthesizer(llm=llm, response_mode="tree_summarize", use_async=False),
        show_progress=False,
    )
    assert [index.get_document_summary(name) for name in TEXTS] == asked.answers()
    response = index.as_query_engine(llm=llm, similarity_top_k=1).query(QUESTION)
    assert [str(response)] == asked.answers()
    assert response.source_nodes


def test_a_property_graph_has_the_relations_of_its_schema(roomy, asked):
    extractor = SchemaLLMPathExtractor(
        llm=roomy.model_copy(update={"max_tokens": 120}),
        possible_entities=Literal["BRIDGE", "PERSON"],
        possible_relations=Literal["BUILT_BY"],
        kg_validation_schema=[("BRIDGE", "BUILT_BY", "PERSON")],
        strict=True,
        num_workers=1,
        max_triplets_per_chunk=1,
    )
    index = PropertyGraphIndex.from_documents(
        [Document(text=TEXTS["bridge"])],
        kg_extractors=[extractor],
        embed_model=embedding(),
        llm=roomy,
        embed_kg_nodes=False,
        show_progress=False,
    )
    assert len(asked.take()) == 1
    assert {triple[1].label for triple in index.property_graph_store.get_triplets() or []} <= {"BUILT_BY"}


def test_a_question_to_a_database(roomy, asked):
    engine = create_engine("sqlite:///:memory:")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bridges (name TEXT, built INTEGER)"))
        connection.execute(text("INSERT INTO bridges VALUES ('Torno Bridge', 1874)"))
    query = Grammar.regex(r"SELECT (name|built) FROM bridges( WHERE (name = 'Torno Bridge'|built = 1874))?")
    database = SQLDatabase(engine, include_tables=["bridges"])
    response = NLSQLTableQueryEngine(
        database, llm=roomy.with_grammar(query), embed_model=embedding(), synthesize_response=False
    ).query("When was the Torno Bridge built?")
    (statement,) = asked.answers()
    assert response.metadata["sql_query"] == statement
    assert response.metadata["result"] in ([("Torno Bridge",)], [(1874,)])
    engine.dispose()
