"""Retrieval question answering in LlamaIndex in which each passage is read in a voice of its own: MiniLM, Chroma.

The passages of every second question are left out of the index, and the prompt shows how to say that a passage does not
tell. Such an answer is also what the models say without a passage: its *lift* is near 0, while that of an answer that a
passage carries is some nats per token. Then more passages are retrieved; if they do not tell either, the answer stays
"not in the documents".

Measured: no gain. SmolLM2-135M-Instruct (weight 0), Qwen2.5-Coder-0.5B-Instruct (2) and Gemma-3-270M (1) on the 10
questions of the handbook: F1 70.0, the same on every question as Qwen alone with the best passage. They abstain from 3
of the 5 questions that the passages do not answer, and answer 4 of the 5 others.

Documents are combined by their mean: ``"contrast"`` weakens what the models say without a passage, and so this answer.

Needs ``pip install 'gac-ensemble[llamaindex]' llama-index-embeddings-huggingface llama-index-vector-stores-chroma``.
"""

from __future__ import annotations

import argparse
from functools import partial

from common import Example, Solved, Task, parser, run
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import Response
from passages import ABSENT, passages_with_gaps
from passages import SHOTS as SOLVED
from rag_chroma_llamaindex import build_index, build_prompt
from recording import recorded

from gac_core import Ensemble
from gac_core.evaluation.metrics import f1
from gac_llamaindex import GaCLLM, VoicesSynthesizer

PASSAGES = 3
MORE_PASSAGES = 8
# Nats per token that the best passage must add to what the models say without one.
LEAST_LIFT = 0.5
INSTRUCTION = (
    "Answer the question from the passage. Give only the answer, in as few words as possible, copied from the passage. "
    f"If the passage does not tell, answer: {ABSENT}"
)
SHOTS = (
    SOLVED[0],
    (
        "The Sarn Lighthouse was completed in 1902. It stands 30 metres tall.",
        "How tall is the Marlow Lighthouse?",
        ABSENT,
    ),
    SOLVED[1],
    ("The keeper of the Blue Mill is Anna Voss. The mill has two wheels.", "Who keeps the Red Mill?", ABSENT),
)


def is_absent(response: Response) -> bool:
    """Returns whether the passages seem not to contain an answer.

    By the calibrated probability where the ensemble has a calibration (``gac calibrate-documents``), else by the lift.
    Where the gate decided every token alone, the lift is unknown, and the answer's own words count.
    """
    doubt = response.metadata["doubt"]
    if doubt["not_in_documents"] is not None:
        return doubt["not_in_documents"] > 0.5
    return str(response).strip() == ABSENT if doubt["lift"] is None else doubt["lift"] < LEAST_LIFT


def show(response: Response, count: int) -> str:
    """Returns a line with the sources of an answer, and how sure it is."""
    names = {each.node_id: each.metadata["passage"] for each in response.source_nodes}
    cited = [f"passage {names[each['document']]} ({each['share']:.0%})" for each in response.metadata["citations"]]
    doubt = response.metadata["doubt"]
    lift = "unknown" if doubt["lift"] is None else f"{doubt['lift']:+.1f} nats"
    return f"{count} passages: {response} (lift {lift}; sources: {', '.join(cited)})"


def solve(index: VectorStoreIndex, llm: GaCLLM, task: Task) -> Solved:
    """Asks a few passages, then more if the answer is doubtful, and abstains if it still is."""
    synthesizer = VoicesSynthesizer(llm, text_qa_template=build_prompt(INSTRUCTION, SHOTS), combine_documents="mean")
    answer, shown = ABSENT, []
    with recorded() as calls:
        for count in (PASSAGES, MORE_PASSAGES):
            engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, similarity_top_k=count)
            response = engine.query(task.question)
            shown.append(show(response, count))
            if not is_absent(response):
                answer = str(response)
                break
    return Solved(answer, max(f1(answer, expected) for expected in task.answers), calls, shown)


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on the passages and questions of ``args.data``; the score is F1 over words."""
    texts, tasks = passages_with_gaps(args.data)
    index = build_index(texts, args.embeddings, "passages_with_gaps")
    return Example(partial(GaCLLM, ensemble=ensemble, max_tokens=24), partial(solve, index), tasks)


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=None).parse_args(), build)
