"""Questions with retrieved passages for the benchmark of voices: the gold passage among hard negatives.

A question of SQuAD-300 is asked with its own passage and those of the other 299 that a retriever ranks highest. All
stand where the retriever ranks them, with its scores; the gold passage is in the set whatever its rank.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RETRIEVERS = ("bm25", "minilm")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Retrieved:
    """A passage as the retriever ranks it.

    Attributes:
        place: Its place in the data.
        text: The passage.
        score: The retriever's, larger for more relevant ones: BM25, or the cosine of embeddings.
    """

    place: int
    text: str
    score: float


@dataclass(frozen=True)
class Case:
    """A question with its retrieved passages.

    Attributes:
        id: ``"<place of the passage>.<place of the question>"``.
        question: The question.
        answers: Accepted answers.
        passages: In the retriever's order, most relevant first.
        gold: Index in ``passages`` of the one that the question was written about.
        form: ``"chat"`` (messages) or ``"shots"`` (text with three examples, for members without a chat template).
    """

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Retrieved, ...]
    gold: int
    form: str = "chat"


def with_negatives(scores: Scores, gold: int, negatives: int) -> list[int]:
    """Returns the places of the gold passage and of the best others, by score; equal scores in the data's order.

    Args:
        scores: Float64, shape ``[passages]``: of one question.
        gold: Place of the gold passage.
        negatives: Number of other passages.
    """
    ranked = [int(place) for place in np.argsort(-scores, kind="stable")]
    others = [place for place in ranked if place != gold][:negatives]
    return [place for place in ranked if place == gold or place in others]


def bm25(passages: Sequence[str], questions: Sequence[str]) -> Scores:
    """Returns BM25 scores, float64 of shape ``[questions, passages]``."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False)
    asked = bm25s.tokenize(list(questions), stopwords="en", return_ids=False, show_progress=False)
    return np.stack([np.asarray(index.get_scores(words), dtype=np.float64) for words in asked])


def minilm(passages: Sequence[str], questions: Sequence[str], model: str) -> Scores:
    """Returns the cosines of embeddings, float64 of shape ``[questions, passages]``."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    found = encoder.encode(list(passages), normalize_embeddings=True)
    asked = encoder.encode(list(questions), normalize_embeddings=True)
    return np.asarray(asked, dtype=np.float64) @ np.asarray(found, dtype=np.float64).T


def cases(
    path: Path, score: Callable[[Sequence[str], Sequence[str]], Scores], negatives: int, question: int = 0
) -> list[Case]:
    """Returns one question about each passage, in a shuffled order that is always the same.

    Args:
        path: A JSON list of ``{"context", "qas": [{"question", "answers"}]}``.
        score: From passages and questions to scores of shape ``[questions, passages]``, such as `bm25`.
        negatives: Number of passages beside the gold one.
        question: Which question of each passage; passages with fewer are left out. Default the first.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    texts = [each["context"] for each in data]
    asked = [(gold, each["qas"][question]) for gold, each in enumerate(data) if question < len(each["qas"])]
    scores = score(texts, [each["question"] for _, each in asked])
    made = []
    for (gold, qa), row in zip(asked, scores, strict=True):
        places = with_negatives(row, gold, negatives)
        found = tuple(Retrieved(place, texts[place], float(row[place])) for place in places)
        name = f"{gold}.{question}"
        made.append(Case(name, qa["question"], tuple(qa["answers"]), found, places.index(gold)))
    random.Random(0).shuffle(made)
    return made
