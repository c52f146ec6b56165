"""Chat templates are rendered as transformers does, and none of them computes without end."""

from __future__ import annotations

import time

import pytest
from chat_templates import GEMMA, IGNORING, MISTRAL, PARTS, QWEN3, WITH_TEMPLATES
from conftest import EMBEDDED, REAL, REAL_NAMES
from prompts import encode_prompt
from transformers import AutoTokenizer

from gac_core import ChatTemplateError, Ensemble, MemberConfig
from gac_core.chat.conversation import Message
from gac_core.templates.rendering import apply_template
from gac_core.tokenization.tokenizer import MemberTokenizer

FOLDERS = [
    *(pytest.param(f, marks=pytest.mark.shared if "shared" in f else (), id=f.split("/")[-1]) for f in WITH_TEMPLATES),
    *(pytest.param(str(REAL / name), marks=pytest.mark.real, id=name) for name in REAL_NAMES),
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks \u6f22 <b>up</b>.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "enum": ["a", "\u00e9"]}}},
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "look", "arguments": {"x": "a", "n": [1, 2.5, None]}},
}
USER, OTHER = {"role": "user", "content": " Who built  it?\n"}, {"role": "assistant", "content": "Melka Dorin."}
TALKS = [
    ([USER], None),
    ([{"role": "system", "content": "Be short."}, USER, OTHER, USER], None),
    ([USER, {**OTHER, "reasoning_content": "It is told."}, USER], None),
    ([USER], [TOOL, TOOL]),
    (
        [
            {"role": "system", "content": "Be short."},
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "none", "tool_call_id": "call00001", "name": "look"},
            OTHER,
            USER,
        ],
        [TOOL],
    ),
    ([USER, USER, OTHER], None),
]
EXOTIC = [
    "{% macro f(x, n) %}{{ x }}{% if n %}{{ f(x ~ n, n - 1) }}{% endif %}{{ caller and '' }}{% endmacro %}"
    "{{ f('a', 3) }}{% set ns = namespace(t='', l=[]) %}{% for m in messages if m.role != 'system' %}"
    "{% set ns.t = ns.t + m.content ~ loop.index %}{% set ns.l = ns.l + [m.role] %}{% else %}none{% endfor %}"
    "{{ ns.t }}{{ ns.l | join(', ') }}{{ ns.l }}{{ {'a': ns.l, 'b': (1, 2)} | tojson(indent=2) }}",
    "{%- for m in messages[::-1] -%}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ '%s:%5d|' % (m.role, loop.index) }}{{ '{:>8}'.format(m.role) }}{{ m['content'].strip().split(' ') | first }}"
    "{{ m.content | replace(' ', '_') | upper | center(30) | indent(4, true) }}{% endfor %}"
    "{{ messages | map(attribute='role') | list | unique | join('-') }}{{ undefined_name }}{{ 2 ** 10 * 3 // 7 % 5 }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ range(3) | sum }}{{ 1.5 * 2 }}",
    "{% set x %}{% filter upper %}abc {{ messages[0].content | trim }}{% endfilter %}{% endset %}{{ x * 2 }}"
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | string | e }};{% endfor %}{{ x is string and 1 in [1, 2] }}"
    "{% for a, b in [('x', 1), ('y', 2)] %}{{ a ~ b }}{{ loop.cycle('o', 'e') }}{% endfor %}{{ x | length }}"
    "{% generation %}gen{% endgeneration %}",
    "{% macro mac() %}[{{ caller(7) }}]{% endmacro %}{% call(v) mac() %}{{ v }}{% endcall %}{{ dict(a=1).get('a') }}"
    "{% for b in messages | batch(2, 'fill') %}{{ b | length }}{% endfor %}{{ 'a\\tb'.expandtabs(4) }}{{ bos_token }}"
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ 'b' if not tools }}",
]


def both(hf, turns, tools):
    """What transformers writes, and what is written here; or the kinds of error."""
    results = []
    for generation in (False, True):
        for render in (
            lambda: hf.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=generation),  # noqa: B023
            lambda: apply_template(hf, "m", turns, tools, generation),  # noqa: B023
        ):
            try:
                results.append(render())
            except Exception as error:
                results.append((type(error).__name__, str(error)))
    return results[::2], results[1::2]


@pytest.mark.parametrize("folder", FOLDERS)
def test_templates_write_what_transformers_writes(folder):
    hf = AutoTokenizer.from_pretrained(folder)
    if not hf.chat_template:
        return
    for turns, tools in TALKS:
        theirs, ours = both(hf, turns, tools)
        assert ours == theirs


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, IGNORING, PARTS, QWEN3, *EXOTIC])
def test_any_templates_write_what_transformers_writes(template):
    hf = AutoTokenizer.from_pretrained(EMBEDDED[0])
    hf.chat_template = template
    for turns, tools in TALKS:
        theirs, ours = both(hf, turns, tools)
        assert ours == theirs
        assert turns is not TALKS[0][0] or isinstance(ours[1], str), ours


GROW = "{% set ns = namespace(x='aaaaaaaa', l=[1], t=(1,)) %}{% for i in range(60) %}%s{% endfor %}"
SLOW = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ range(99999) | map('round', 300000, 'ceil') | list | length }}",
    "{% for i in range(99999) %}{% set _ = range(99999) | select('gt', 99999) | list %}{% endfor %}",
]
LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * [1] }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'x' | attr('ljust')(10**10) }}",
    "{{ 7 ** (10 ** 10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10000000000, 1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10000000000) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ 'a\\tb'.expandtabs(10**10) }}",
    "{{ 'a\\nb' | indent(10**10) }}",
    "{{ [1, [2]] | tojson(indent=10**10) }}",
    "{{ [1] | batch(10**10, 'x') | list }}",
    "{{ [1] | slice(10**10) | list }}",
    "{{ lipsum(10**8) }}",
    "{{ 1.5 | round(10**10, 'ceil') }}",
    "{{ (5).to_bytes(10**10) }}",
    "{{ range(99999) | map('center', 99999) | join }}",
    "{{ ('(' * 500000) | urlize }}",
    "{{ ('<a>' * 300000) | striptags }}",
    "{{ 'abc'.translate({97: 'x' * 900000, 98: 'y' * 900000, 99: 'z' * 4000000}) }}",
    "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
    "{{ dict.fromkeys(range(99999) | list, 'a' * 900000) | string | length }}",
    "{% for i in range(99999) %}{{ 'a long constant text that is written again and again' }}{% endfor %}",
    *(
        GROW.replace("%s", step)
        for step in (
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x = ns.x.replace('a', 'aaaa') %}",
            "{% set ns.x = ns.x | replace('a', 'aaaa') %}",
            "{% set ns.x = ns.x.join(ns.x) %}",
            "{% set ns.x = ns.x | join(ns.x) %}",
            "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
            "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
            "{% set ns.l = [ns.l, ns.l] %}",
            "{% set ns.t = (ns.t, ns.t) %}",
            "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
            "{% set ns.l = ns.l | list + ns.l | list %}",
            "{% set ns.l = namespace(a=ns.l, b=ns.l) %}{{ ns.l | string | length }}",
        )
    ),
]


@pytest.fixture
def hf(monkeypatch):
    monkeypatch.setattr("gac_core.templates.limits.SECONDS", 0.2)
    return AutoTokenizer.from_pretrained(EMBEDDED[0])


@pytest.mark.parametrize(("templates", "reason"), [(SLOW, r"for more than 0\.2 s"), (LARGE, r"more than|[0-9] bits")])
def test_templates_that_compute_without_end_are_stopped(hf, templates, reason):
    for template in templates:
        hf.chat_template = template
        begun = time.thread_time()
        with pytest.raises(
            ChatTemplateError, match=rf"member 'm' cannot render .*{reason}.*MemberConfig\.chat_template"
        ):
            apply_template(hf, "m", [USER])
        assert time.thread_time() - begun < 3, template


@pytest.mark.parametrize("size", [40_000, 600_000])
def test_templates_of_any_size_and_depth_end_in_an_error(hf, size):
    for template in ("{{ " + "(" * size + "1" + ")" * size + " }}", "{{ 1" + "+1" * size + " }}", "{% if 1 %}" * size):
        hf.chat_template = template
        with pytest.raises(Exception, match=r"\S") as error:
            apply_template(hf, "m", [USER])
        assert isinstance(error.value, ChatTemplateError) == (len(template) > 2**19)


def test_a_template_that_never_ends_is_told_when_its_member_is_loaded(monkeypatch):
    monkeypatch.setattr("gac_core.templates.limits.SECONDS", 0.2)
    with pytest.raises(ChatTemplateError, match=r"member 'bad' cannot render .*more than 0\.2 s"):
        Ensemble.load([EMBEDDED[1], MemberConfig(EMBEDDED[0], name="bad", chat_template=SLOW[0])])


def test_a_template_that_never_ends_for_some_conversations_fails_those(hf):
    hf.chat_template = "{% if messages[0].content == 'slow' %}" + SLOW[0] + "{% endif %}{{ messages[0].content }}"
    member = MemberTokenizer(hf, "m")
    assert encode_prompt(member, [Message("user", "fast")])
    with pytest.raises(ChatTemplateError, match="for more than"):
        encode_prompt(member, [Message("user", "slow")])


def test_long_conversations_stay_within_the_limits():
    hf = AutoTokenizer.from_pretrained(EMBEDDED[0])
    turns = [USER, OTHER] * 2000 + [{"role": "user", "content": "word " * 200_000}]
    theirs, ours = both(hf, turns, None)
    assert ours == theirs
    hf.chat_template = EXOTIC[0]
    theirs, ours = both(hf, turns[-401:], None)
    assert ours == theirs
