"""The prompts of the retrieval examples, the same in both frameworks."""

from __future__ import annotations

INSTRUCTION = (
    "Answer the question from the passages. Give only the answer, in as few words as possible, copied from the "
    "passages."
)
ASK = "Passages:\n\n{context}\n\nQuestion: {question}"
# Two solved questions: the base model among the members learns from them what an answer looks like.
SHOTS = (
    (
        "The Marlow Lighthouse was completed in 1871 by the engineer Edith Crane. It stands 42 metres tall.",
        "Who built the Marlow Lighthouse?",
        "Edith Crane",
    ),
    (
        "Basalt forms when lava cools rapidly. More than 90% of all volcanic rock on Earth is basalt.",
        "What share of volcanic rock is basalt?",
        "More than 90%",
    ),
)
