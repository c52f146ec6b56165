"""Score each member alone on held-out questions with plain transformers."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from handbook import NOT_TOLD, Example, answers_match, held_out, render_messages
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
MEMBERS = ("ash", "birch", "cedar")


def answer_all(member: str, examples: list[Example], layout: str = "main", batch: int = 50) -> list[str]:
    """Answer every example greedily.

    Args:
        member: Folder name of the member.
        examples: What to answer.
        layout: Prompt layout, see ``render_messages``.
        batch: Examples a call.

    Returns:
        One answer per example, in order.
    """
    tokenizer = AutoTokenizer.from_pretrained(HERE / member)
    model = AutoModelForCausalLM.from_pretrained(HERE / member, dtype=torch.float32)
    order = sorted(range(len(examples)), key=lambda index: sum(map(len, examples[index].passages)))
    answers = [""] * len(examples)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        prompts = [
            tokenizer.apply_chat_template(
                render_messages(examples[index], layout), tokenize=False, add_generation_prompt=True
            )
            for index in chosen
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def main() -> None:
    """Print accuracy by member, by number of passages and by relation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("main", "context"), default="main")
    parser.add_argument("--members", nargs="*", default=list(MEMBERS))
    arguments = parser.parse_args()
    examples = held_out(arguments.questions, arguments.seed)
    votes: list[list[bool]] = []
    for member in arguments.members:
        answers = answer_all(member, examples, arguments.layout)
        right = [answers_match(answer, each.answer) for answer, each in zip(answers, examples, strict=True)]
        votes.append(right)
        print(f"{member}: {sum(right)}/{len(right)} right")
        for label, keys in (
            ("passages", [str(len(each.passages)) for each in examples]),
            ("told", ["no" if each.answer == NOT_TOLD else "yes" for each in examples]),
            ("relation", [each.relation for each in examples]),
        ):
            asked, got = Counter(keys), Counter(key for key, good in zip(keys, right, strict=True) if good)
            print(f"  by {label}: " + ", ".join(f"{key} {got[key]}/{asked[key]}" for key in sorted(asked)))
    by_count = Counter(sum(column) for column in zip(*votes, strict=True))
    print("questions by number of members right:", dict(sorted(by_count.items())))


if __name__ == "__main__":
    main()
