"""Members that know a few answers by heart, for tests of frameworks whose loops only a capable model can go through.

A loop is run on a `Recorder`, which answers from a script and keeps what it was asked; `overfit` trains small models,
in seconds, until they write the script's answers to just these prompts. They know nothing else. The loops are then run
on the real engine.

The models see a window of `WINDOW` tokens a layer, so that an answer depends on the last ``2 * WINDOW`` tokens alone:
training on the ends of prompts is then the same as training on the whole of them, and fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from conftest import EMBEDDED, ensemble_of
from prompts import encode_prompt
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from gac_core import Ensemble, EnsembleConfig, OutputChunk, RequestOutput, fold
from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import FORMS
from gac_core.chat.conversation import as_conversation
from gac_core.engine.output_processor import OutputProcessor
from gac_core.output import FinishReason, RequestStats, Usage
from gac_core.tokenization.tokenizer import MemberTokenizer

WINDOW = 32
Script = Callable[[str], str]


class Recorder(Ensemble):
    """Stands where an ensemble stands while a loop is recorded: asks the script, and keeps prompts and answers.

    Args:
        script: Returns the answer to a prompt, given the text of its last message.
    """

    config = EnsembleConfig.from_dict({"members": ["recorder"]})
    names = config.names
    gate = "recorder"
    context = 8192

    def __init__(self, script: Script) -> None:
        # No members, so nothing of an ensemble's own is made.
        self.pairs: list[tuple[Any, str]] = []
        self._script = script

    def check(self, params: Any) -> None:
        pass

    def context_for(self, params: Any) -> int:
        return self.context

    def without_chat_template(self, params: Any = None) -> list[str]:
        return []

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def stream(self, prompt: Any, params: Any, request_id: str | None = None) -> Iterator[OutputChunk]:
        talk = as_conversation(prompt)
        answer = self._script(talk.turns[-1].content)
        self.pairs.append((talk, answer))
        done = RequestOutput("", "", (), FinishReason.STOP, None, Usage(1, 1), RequestStats(), None, None)
        forms = FORMS if talk.tool_choice == "auto" else ()
        parser = AnswerParser([tool.name for tool in talk.offered_tools], forms=forms)
        yield OutputProcessor(parser).read(OutputChunk(answer, output=done))

    def generate(self, prompt: Any, params: Any, request_id: str | None = None) -> RequestOutput:
        return fold(self.stream(prompt, params))

    async def astream(self, prompt: Any, params: Any, request_id: str | None = None):
        for chunk in self.stream(prompt, params):
            yield chunk

    async def agenerate(self, prompt: Any, params: Any, request_id: str | None = None) -> RequestOutput:
        return self.generate(prompt, params)


def overfit(pairs: list[tuple[Any, str]], folders: list[str] = EMBEDDED[:2], steps: int = 400) -> Ensemble:
    """Returns an ensemble whose members write the given answers to the given conversations."""
    return ensemble_of([_train(folder, pairs, steps, seed) for seed, folder in enumerate(folders)])


def _train(folder: str, pairs: list[tuple[Any, str]], steps: int, seed: int):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=WINDOW,
        max_position_embeddings=8192,
    )
    model = MistralForCausalLM(config)
    wrapped = MemberTokenizer(tokenizer, folder)
    lessons = [
        (
            encode_prompt(wrapped, talk)[-2 * WINDOW :],
            [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id],
        )
        for talk, answer in pairs
    ]
    batches = batched(lessons)
    learned = sum(len(answer) for _, answer in lessons)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.0
        for ids, labels in batches:
            hidden = model.model(input_ids=ids).last_hidden_state
            # Most positions are prompt, for which nothing is learned.
            logits = model.lm_head(hidden[labels != -100])
            part = torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="sum") / learned
            part.backward()
            loss += float(part.detach())
        optimizer.step()
        if loss < 6e-3:
            break
    else:
        raise AssertionError(f"{folder} did not learn its answers in {steps} steps: loss {loss:.4f}")
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def batched(lessons: list[tuple[list[int], list[int]]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels, both of shape ``[lessons, longest]``, of three batches of prompts with their answers.

    Lessons of similar lengths are together, so that little is padding. A position's label is the id after it; only
    answers have labels.
    """
    ordered = sorted(lessons, key=lambda lesson: len(lesson[0]) + len(lesson[1]))
    cuts = [len(ordered) * part // 3 for part in range(4)]
    return [_padded(ordered[start:end]) for start, end in pairwise(cuts)]


def _padded(lessons: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in lessons)
    ids = torch.zeros((len(lessons), width), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(lessons):
        start, end = len(prompt), len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, start - 1 : end - 1] = ids[row, start:end]
    return ids, labels
