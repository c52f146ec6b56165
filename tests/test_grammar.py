"""Texts in a grammar: always in it, the same however they are computed, and those of the plain reference."""

from __future__ import annotations

import json
import re

import pytest
import reference
import torch
from conftest import EMBEDDED, QUESTION, copied_pair, ensemble_of, shared_ensemble, start
from schemas import PERSON, SCHEMAS, fits

from gac_core import Grammar, GrammarError

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
CALL = re.compile(r"<tool_call>\n?(.*?)\n?</tool_call>", re.DOTALL)


@pytest.mark.parametrize(
    ("threshold", "drafts"),
    [
        (None, True),
        (0.05, False),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param(0.05, True, marks=pytest.mark.slow),
    ],
)
def test_every_schema_is_kept_in_batches(talkers, threshold, drafts):
    streams = [
        start(
            talkers,
            "Answer as JSON: ",
            grammar=Grammar.json_schema(schema),
            temperature=1.0,
            seed=seed,
            max_tokens=3000,
            threshold=threshold,
            drafts=drafts,
        )
        for seed, schema in enumerate(SCHEMAS)
    ]
    assert len(streams) == 200
    for stream, schema in zip(streams, SCHEMAS, strict=True):
        fits("".join(chunk.text for chunk in stream), schema)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("threshold", [None, 0.05])
def test_constrained_text_is_the_same_alone_in_a_batch_and_with_drafts(talkers, temperature, threshold):
    asked = {
        "grammar": Grammar.json_schema({"type": "array", "items": PERSON, "minItems": 2, "maxItems": 3}),
        "max_tokens": 400,
        "temperature": temperature,
        "threshold": threshold,
        "seed": 3,
    }
    prompts = ["People: ", "The same once more: ", "x"]
    alone = [talkers.generate(prompt, drafts=False, **asked) for prompt in prompts]
    drafted = [talkers.generate(prompt, **asked) for prompt in prompts]
    batch = talkers.generate_batch(prompts, **asked)
    assert [o.tokens for o in drafted] == [o.tokens for o in alone]
    assert [o.tokens for o in batch] == [o.tokens for o in alone]
    assert [o.stats.forced for o in batch] == [o.stats.forced for o in alone]


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema(PERSON),
        Grammar.regex(r"(In|At) [A-Z][a-z]{2,8}, [0-9]{4}/[0-9]{2}"),
        Grammar.choices(["the Torno Bridge", "the town of Halkus", "the"]),
        Grammar.tool_calls(TOOLS, required=True, parallel=False),
    ],
)
def test_constrained_greedy_text_equals_the_reference(ensemble, plain_members, grammar, threshold):
    settings = {
        "gate": ensemble.names.index(ensemble.gate),
        "threshold": threshold,
        "grammar": reference.Oracle(grammar),
    }
    tokens, ended = reference.generate(plain_members, QUESTION, 80, **settings)
    output = ensemble.generate(QUESTION, grammar=grammar, threshold=threshold, max_tokens=80)
    assert list(output.tokens) == tokens
    assert ended == (output.finish_reason.value == "stop")


def test_choices_and_patterns_are_kept(talkers):
    choices = ["yes", "no", "yes, but", "Größe"]
    for seed in range(8):
        asked = {"temperature": 1.0, "seed": seed, "max_tokens": 60}
        assert talkers.generate("x", grammar=Grammar.choices(choices), **asked).text in choices
        text = talkers.generate("x", grammar=Grammar.regex(r"[ab]{2,4}/[0-9]{1,9}é?"), **asked).text
        assert re.fullmatch(r"[ab]{2,4}/[0-9]{1,9}é?", text)


def is_sum(text):
    """Whether a text is a number of one or two digits, or two such texts with a plus sign in parentheses."""
    found = 1
    while found:
        text, found = re.subn(r"\([0-9]{1,2}\+[0-9]{1,2}\)", "0", text)
    return re.fullmatch("[0-9]{1,2}", text) is not None


def test_nested_sums_follow_their_lark_grammar(talkers):
    lark = 'start: expr\nexpr: NUM | "(" expr "+" expr ")"\nNUM: /[0-9]{1,2}/'
    asked = {"grammar": Grammar.lark_grammar(lark), "temperature": 1.0, "max_tokens": 60}
    outputs = [talkers.generate("x", seed=seed, **asked) for seed in range(12)]
    texts = [output.text for output in outputs if output.finish_reason.value == "stop"]
    assert any("+" in text for text in texts)
    assert all(is_sum(text) for text in texts), texts


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_valid(talkers, parallel, drafts):
    grammar = Grammar.tool_calls(TOOLS, required=True, parallel=parallel)
    for seed in range(12):
        output = talkers.generate("Call: ", grammar=grammar, temperature=1.0, seed=seed, max_tokens=1500, drafts=drafts)
        calls = [json.loads(text) for text in CALL.findall(output.text)]
        assert output.finish_reason.value == "stop"
        assert not CALL.sub("", output.text).strip()
        assert len(calls) >= 1 if parallel else len(calls) == 1
        for call in calls:
            assert list(call) == ["name", "arguments"]
            fits(json.dumps(call["arguments"]), TOOLS[call["name"]])


def test_text_is_free_until_a_call_begins(ensemble, talkers):
    grammar = Grammar.tool_calls(TOOLS)
    free = ensemble.generate(QUESTION, grammar=grammar, max_tokens=30)
    assert free.tokens == ensemble.generate(QUESTION, max_tokens=30).tokens
    # Whoever opens a call goes through with it.
    lead = Grammar.lark_grammar(
        grammar.lark.replace("start: ", 'start: "I look. <tool_call>" body called* text\nrest: ')
    )
    output = talkers.generate("Once", grammar=lead, max_tokens=600, temperature=1.0, seed=1)
    call = json.loads(CALL.findall(output.text)[0])
    fits(json.dumps(call["arguments"]), TOOLS[call["name"]])


def test_forced_tokens_cost_no_forward(talkers):
    grammar = Grammar.json_schema(PERSON)
    output = talkers.generate("x", grammar=grammar, max_tokens=300, drafts=False, logprobs=1)
    stats = output.stats
    assert stats.forced > stats.steps > 0
    assert stats.steps + stats.forced == len(output.tokens) + 1
    assert all(member.forwards == stats.steps for member in stats.members.values())
    assert len(output.logprobs) == len(output.tokens) + 1
    assert output.logprobs[0].logprob == 0.0
    everything_forced = talkers.generate("x", grammar=Grammar.choices(["only this"]))
    assert everything_forced.text == "only this"
    assert all(member.forwards == 0 for member in everything_forced.stats.members.values())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Grammar.regex("(a"), "unclosed group"),
        (lambda: Grammar.json_schema({"type": "object", "not": {"required": ["a"]}}), "not"),
        (lambda: Grammar.json_schema({"$ref": "#/$defs/none"}), "none"),
        (lambda: Grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "[Uu]nsatisf"),
        (lambda: Grammar.lark_grammar("start: nothing"), "nothing"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_any_work(ensemble, make, told):
    with pytest.raises(GrammarError, match=told):
        ensemble.generate("x", grammar=make())


def test_what_members_give_no_probability_ends_the_request_alone():
    model, tokenizer = copied_pair(EMBEDDED[0])
    with torch.no_grad():
        model.lm_head.weight *= 1000
    with ensemble_of([(model, tokenizer)]) as sharp:
        other = start(sharp, "The bridge", max_tokens=20)
        with pytest.raises(GrammarError, match="any probability"):
            sharp.generate("The bridge", grammar=Grammar.choices(["~", "}{", "QQ"]))
        assert list(other)[-1].output is not None


def test_a_grammar_that_only_one_member_can_spell_is_still_kept():
    with shared_ensemble(EMBEDDED[:1]) as one:
        assert one.generate("x", grammar=Grammar.choices(["😀", "漢字"])).text in {"😀", "漢字"}


@pytest.mark.parametrize("text", ["a\nb", "a b/c-d&~#", "tab\t.", "\\\n"])
def test_escaped_text_is_matched_as_it_is(ensemble, text):
    assert ensemble.generate("x", grammar=Grammar.regex(re.escape(text))).text == text


def test_verbose_patterns_of_several_lines_are_refused():
    with pytest.raises(GrammarError, match="one line"):
        Grammar.regex("(?x)\n [a-z] # a letter\n")


def test_grammars_that_cannot_go_back_are_not_drafted(ensemble):
    grammar = Grammar.lark_grammar('start: x "END"\nx[max_tokens=5]: /[a-z]*/')
    plain = ensemble.generate("Say: ", max_tokens=20, grammar=grammar, drafts=False).text
    assert ensemble.generate("Say: ", max_tokens=20, grammar=grammar).text == plain
    assert plain.endswith("END")


@pytest.mark.parametrize("prefill_tokens", [16, 32])
def test_a_draft_that_the_prefill_budget_cuts_goes_on(prefill_tokens):
    one = shared_ensemble(EMBEDDED, prefill_tokens=prefill_tokens)
    items = {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}, "maxItems": 4}
    parts = {"a": {"type": "string", "maxLength": 20}, "a long name of a property": items}
    grammar = Grammar.json_schema({"type": "object", "properties": parts, "required": list(parts)})
    asked = {"max_tokens": 60, "grammar": grammar}
    plain = one.generate("Who is Ann?", **asked, drafts=False).text
    assert one.generate("Who is Ann?", **asked).text == plain


def test_grammars_show_that_they_differ():
    one, two = Grammar.choices(["a"]), Grammar.choices(["b"])
    assert repr(one) != repr(two)
    assert repr(one) == repr(Grammar.choices(["a"]))
    assert repr(Grammar.tool_calls({"a": {}}, answer=one)) != repr(Grammar.tool_calls({"a": {}}, answer=two))
    assert len(repr(Grammar.json_schema(PERSON))) < 80
