"""Texts in a grammar: always in it, the same however they are computed, and those of the plain reference."""

from __future__ import annotations

import copy
import datetime
import json
import re

import jsonschema
import llguidance
import pytest
import reference
import torch
from conftest import EMBEDDED, QUESTION, copied_pair, ensemble_of, shared_ensemble, start
from schemas import PERSON, SCHEMAS

from gac_core import Grammar, GrammarError, RequestError
from gac_core.grammar.schema import is_recursive

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


def fits(text, schema):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.05])
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


class Oracle:
    """The same grammar over the reference's own union, for `reference.generate`."""

    def __init__(self, grammar):
        self.grammar = grammar

    def start(self, union):
        ids = {data: index for index, data in enumerate(union)}

        def spell(text):
            data, out = text if isinstance(text, bytes) else text.encode(), []
            while data:
                piece = next(data[:n] for n in range(len(data), 0, -1) if data[:n] in ids)
                out.append(ids[piece])
                data = data[len(piece) :]
            return out

        spell.eos_token_id, spell.bos_token_id = len(union), None
        spell.tokens, spell.special_token_ids = [*union, b"\xff<end>"], [len(union)]
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(spell))
        return llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(self.grammar.lark))


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
    settings = {"gate": ensemble.names.index(ensemble.gate), "threshold": threshold, "grammar": Oracle(grammar)}
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema("[1"),
        lambda: Grammar.json_schema([1]),
        lambda: Grammar.json_schema({"enum": [{1, 2}]}),
        lambda: Grammar.regex(""),
        lambda: Grammar.lark_grammar(" "),
        lambda: Grammar.choices([]),
        lambda: Grammar.choices("yes"),
        lambda: Grammar.tool_calls({}),
    ],
)
def test_what_is_no_grammar_is_refused(make):
    with pytest.raises(GrammarError):
        make()


def test_a_grammar_must_be_one(ensemble):
    with pytest.raises(RequestError, match=r"Grammar\.json_schema"):
        ensemble.generate("x", grammar={"type": "object"})


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


def test_objects_get_no_properties_that_nobody_listed(talkers):
    inner = {"type": "object", "properties": {"b": {"type": "boolean"}}}
    schema = {"type": "object", "properties": {"a": inner, "c": {"$ref": "#/$defs/d"}}, "$defs": {"d": inner}}
    for seed in range(8):
        asked = {"temperature": 1.0, "seed": seed, "max_tokens": 400}
        values = json.loads(talkers.generate("x", grammar=Grammar.json_schema(schema), **asked).text)
        assert set(values) <= {"a", "c"}
        assert all(set(value) <= {"b"} for value in values.values())
    joined = {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["z"]}]}
    joined["allOf"].append({"properties": {"z": {"const": 2}}, "additionalProperties": True})
    assert '"additionalProperties": false' not in Grammar.json_schema(joined).lark


def test_formats_that_nobody_enforces_are_annotations(ensemble):
    schema = {"type": "string", "format": "file-path", "maxLength": 3}
    assert len(json.loads(ensemble.generate("x", grammar=Grammar.json_schema(schema), max_tokens=20).text)) <= 3
    day = {"type": "string", "format": "date"}
    datetime.date.fromisoformat(json.loads(ensemble.generate("x", grammar=Grammar.json_schema(day)).text))
    # A property may be called so.
    named = {"type": "object", "properties": {"format": {"enum": ["path"]}}, "required": ["format"]}
    assert ensemble.generate("x", grammar=Grammar.json_schema(named)).text == '{"format": "path"}'


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({"enum": ["x", "y", 3]}, {"x", "y"}),
        ({"$ref": "#/$defs/one"}, {"x"}),
        ({"pattern": "^[ab]$", "type": "string"}, {"a", "b"}),
    ],
)
def test_names_of_properties_are_kept(talkers, names, kept):
    values = {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "propertyNames": names,
    }
    schema = {"properties": {"v": values}, "required": ["v"], "$defs": {"one": {"const": "x", "title": "One"}}}
    grammar = Grammar.json_schema({"type": "object", **schema})
    for seed in range(8):
        text = talkers.generate("x", grammar=grammar, temperature=2.0, seed=seed, max_tokens=200).text
        fits(text, schema)
        assert json.loads(text)["v"].keys() <= kept


def test_names_that_may_be_any_string_are_no_restriction(ensemble):
    schema = {"type": "object", "propertyNames": {"type": "string"}, "properties": {"a": {"const": 1}}}
    schema = {**schema, "required": ["a"], "additionalProperties": False}
    assert ensemble.generate("x", grammar=Grammar.json_schema(schema)).text == '{"a": 1}'
    with pytest.raises(GrammarError, match=r"propertyNames.*check the answer"):
        ensemble.generate("x", grammar=Grammar.json_schema({"propertyNames": {"maxLength": 3}}))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"enum": [1234567890123456789]}, "1234567890123456789"),
        ({"properties": {"a": {"const": 123456789.12345679}}}, "make it a string"),
        ({"type": "integer", "multipleOf": 2**60 + 1}, "multipleOf"),
        ({"type": "integer", "minimum": 2**60 + 1, "maximum": 2**60 + 3}, "[Uu]nsatisf"),
    ],
)
def test_numbers_that_would_become_others_are_refused(ensemble, schema, told):
    with pytest.raises(GrammarError, match=told):
        ensemble.generate("x", grammar=Grammar.json_schema(schema))


def test_bounds_of_64_bits_are_kept(talkers):
    schema = {"type": "integer", "minimum": 2**63 - 2000, "maximum": 2**63 - 1}
    for seed in range(5):
        text = talkers.generate("x", grammar=Grammar.json_schema(schema), temperature=2.0, seed=seed).text
        fits(text, schema)


def test_what_is_required_without_being_listed_has_its_place(ensemble):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"]}
    schema["additionalProperties"] = True
    before = Grammar.json_schema(schema)
    del schema["additionalProperties"]
    asked = {"max_tokens": 30, "temperature": 0.0}
    assert (
        ensemble.generate("x", grammar=Grammar.json_schema(schema), **asked).text
        == ensemble.generate("x", grammar=before, **asked).text
    )


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


def test_tags_with_defaults_are_written_out(ensemble):
    def branch(tag):
        return {"type": "object", "properties": {"kind": {"const": tag, "default": tag}}}

    union = {"oneOf": [branch("a"), {"$ref": "#/$defs/b"}], "discriminator": {"propertyName": "kind"}}
    schema = {"type": "object", "properties": {"v": union}, "required": ["v"], "$defs": {"b": branch("b")}}
    before = copy.deepcopy(schema)
    texts = {
        ensemble.generate("x", grammar=Grammar.json_schema(schema), temperature=2.0, seed=seed).text
        for seed in range(8)
    }
    assert texts == {'{"v": {"kind": "a"}}', '{"v": {"kind": "b"}}'}
    assert schema == before


@pytest.mark.parametrize(
    ("schema", "want"),
    [
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, True),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}}}, True),
        ({"items": {"$ref": "#"}}, True),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"type": "string"}}}, False),
        ({"type": "object"}, False),
    ],
)
def test_schemas_that_refer_to_themselves(schema, want):
    assert is_recursive(schema) is want


def test_grammars_show_that_they_differ():
    one, two = Grammar.choices(["a"]), Grammar.choices(["b"])
    assert repr(one) != repr(two)
    assert repr(one) == repr(Grammar.choices(["a"]))
    assert repr(Grammar.tool_calls({"a": {}}, answer=one)) != repr(Grammar.tool_calls({"a": {}}, answer=two))
    assert len(repr(Grammar.json_schema(PERSON))) < 80
