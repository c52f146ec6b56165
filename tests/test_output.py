"""Streams: the last chunk carries the complete output, which is the sum of all chunks."""

from __future__ import annotations

import pytest
from conftest import QUESTION

from gac_core import (
    FinishReason,
    OutputChunk,
    RequestOutput,
    RequestStats,
    TokenLogprob,
    TokenStats,
    Usage,
    fold,
    token_counts,
)
from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import FORMS
from gac_core.engine.output_processor import OutputProcessor

ASKED = {"max_tokens": 12, "temperature": 1.5, "seed": 3, "logprobs": 1, "token_stats": True}
PROMPTS = pytest.mark.parametrize("prompt", ["In which town", QUESTION], ids=["text", "conversation"])


def joined(chunks):
    return (
        "".join(chunk.text for chunk in chunks),
        "".join(chunk.reasoning for chunk in chunks),
        tuple(token for chunk in chunks for token in chunk.tokens),
        tuple(entry for chunk in chunks for entry in chunk.logprobs),
        tuple(entry for chunk in chunks for entry in chunk.token_stats),
    )


def parts(output):
    return output.text, output.reasoning, output.tokens, output.logprobs, output.token_stats


@PROMPTS
async def test_the_last_chunk_carries_the_whole_answer(ensemble, prompt):
    chunks = list(ensemble.stream(prompt, **ASKED))
    assert [chunk.output is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    output = chunks[-1].output
    assert output is fold(chunks)
    assert output.text
    assert parts(output) == joined(chunks)
    later = [chunk async for chunk in ensemble.astream(prompt, **ASKED)]
    others = [
        later[-1].output,
        ensemble.generate(prompt, **ASKED),
        await ensemble.agenerate(prompt, **ASKED),
        *ensemble.generate_batch([prompt], **ASKED),
        *await ensemble.agenerate_batch([prompt], **ASKED),
    ]
    assert [(each.text, each.tokens) for each in others] == [(output.text, output.tokens)] * 5


def test_what_was_not_asked_for_stays_away(ensemble):
    output = fold(ensemble.stream(QUESTION, max_tokens=3))
    assert len(output.tokens) == output.usage.completion_tokens == 3
    assert (output.logprobs, output.token_stats) == (None, None)


def test_reasoning_and_calls_are_split_from_the_text():
    text = '<think>hm</think>Well.<tool_call>{"name": "clock", "arguments": {"zone": "x"}}</tool_call>'
    processor = OutputProcessor(AnswerParser(["clock"], forms=FORMS), token_stats=True)
    tokens = [bytes([byte]) for byte in text.encode()]
    chunks = [
        processor.read(
            OutputChunk(chr(token[0]), (token,), (TokenLogprob(token, -1.0),), token_stats=(TokenStats(token, 0.5),))
        )
        for token in tokens
    ]
    assert all(chunk.output is None for chunk in chunks)
    assert processor.num_tokens == len(tokens)
    end = RequestOutput("", "", (), FinishReason.STOP, None, Usage(1, 1), RequestStats(), (), None, token_stats=())
    chunks.append(processor.read(OutputChunk("", logprobs=(), output=end, token_stats=())))
    output = fold(chunks)
    assert (output.text, output.reasoning, output.tokens) == ("Well.", "hm", tuple(tokens))
    assert parts(output) == joined(chunks)
    assert [(call.name, call.values) for call in output.tool_calls] == [("clock", {"zone": "x"})]
    assert output.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("tokens", "inside", "count"),
    [
        (["Well", "."], False, 0),
        (["<think>", "hm", "</think>", "Well", "."], False, 3),
        (["\n", "<thi", "nk>h", "m</th", "ink>\n\n", "Well </think>"], False, 5),
        (["<think>", "hm"], False, 2),
        (["<think></think>", "Well"], False, 1),
        (["hm", "</think>", "Well"], True, 2),
        (["hm"], True, 1),
        (["<think", "ing"], False, 0),
        ([], True, 0),
    ],
)
def test_usage_counts_the_tokens_of_the_reasoning(tokens, inside, count):
    processor = OutputProcessor(AnswerParser(inside=inside))
    for token in tokens:
        processor.read(OutputChunk(token, (token.encode(),)))
    usage = Usage(7, len(tokens))
    end = RequestOutput("", "", (), FinishReason.STOP, None, usage, RequestStats(), None, None)
    output = processor.read(OutputChunk("", output=end)).output
    assert output.usage == Usage(7, len(tokens), count)
    assert output.usage.total_tokens == 7 + len(tokens)
    assert token_counts(output).reasoning == count


@pytest.mark.parametrize("chunks", [[], [OutputChunk("half a stream")]])
def test_only_a_whole_stream_can_be_folded(chunks):
    with pytest.raises(ValueError, match="the stream is incomplete"):
        fold(chunks)
