"""Traces of answers: the numbers are those of the answers, and a page shows every token without any effect."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from conftest import EMBEDDED, QUESTION
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import HOSTILE, NAMES, hostile_trace
from typer.testing import CliRunner

from gac_core import Grammar, MemberToken, RequestError, TokenStats
from gac_core.cli import app
from gac_core.trace import trace
from gac_core.trace.levels import LEVELS, level_of
from gac_core.trace.page import _resource
from gac_core.trace.tokens import token_views
from gac_core.trace.visible import is_hidden, label

ASKED = {"max_tokens": 12}
TEXT = "In which town is the Torno Bridge?"

# ---- colours


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes() -> list[dict[str, str]]:
    """The colours of the page by name, light and dark."""
    blocks = re.findall(r":root\{(.*?)\}", _resource("page.css"))
    found = []
    for block in blocks:
        pairs = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})\b", block))
        expanded = {
            key: value if len(value) == 7 else "#" + "".join(c * 2 for c in value[1:]) for key, value in pairs.items()
        }
        found.append({**(found[0] if found else {}), **expanded})
    return found


@pytest.mark.parametrize("index", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_and_ordered_without_colour_vision(index):
    colours = palettes()[index]
    for name in ("text", "muted", "accent"):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
        assert contrast(colours[name], colours["card"]) >= 4.5, name
    for level in (1, 2, 3):
        assert contrast(colours["on"], colours[f"l{level}"]) >= 4.5
    assert contrast(colours["on4"], colours["l4"]) >= 4.5
    order = [luminance(colours[name]) for name in ("card", "l1", "l2", "l3", "l4")]
    assert order == sorted(order, reverse=index == 0)
    for member in range(8):
        assert contrast(colours[f"m{member}"], colours["card"]) >= (3 if member != 3 else 2.5)


def test_levels_cover_all_values_and_match_the_page():
    assert [level_of(value).number for value in (1.0, 0.9, 0.89, 0.7, 0.5, 0.3, 0.29, 0.0)] == [0, 0, 1, 1, 2, 3, 4, 4]
    light = palettes()[0]
    assert [level.colour for level in LEVELS[1:]] == [light[f"l{level.number}"] for level in LEVELS[1:]]


# ---- the page


class Page(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements, self.ids, self.targets, self.text = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.elements.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values["for"]] if "for" in values else []
        self.targets += [values["href"][1:]] if values.get("href", "").startswith("#") else []

    def handle_data(self, data):
        self.text += data


def check_page(html: str) -> Page:
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "svg", "iframe", "object", "embed", "form", "base", "audio", "video"}
    for tag, values in page.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "action") for name in values), (tag, values)
        assert tag != "link" or values == {"rel": "icon", "href": "data:,"}
        assert tag != "a" or values["href"].startswith("#")
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert not any(is_hidden(char) and char not in "\n\t" for char in html)
    policy = next(values["content"] for tag, values in page.elements if values.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", html, flags=re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "url(" not in style
    assert "@import" not in style
    return page


def test_hostile_tokens_are_shown_and_have_no_effect():
    page = check_page(hostile_trace().to_html())
    for token in HOSTILE:
        assert label(token) in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert NAMES[0] in page.text
    labels = [values["aria-label"] for tag, values in page.elements if values.get("name") == "token"]
    assert len(labels) == len(HOSTILE) + 2
    assert "Token 1: </script><img" in labels[1].replace("\u2423", " ")


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.binary(min_size=1, max_size=12) | st.text(min_size=1, max_size=6).map(str.encode), min_size=1, max_size=6
    )
)
def test_pages_of_any_tokens_are_safe(tokens):
    check_page(hostile_trace(tuple(tokens), ("a", "b")).to_html())


def test_what_a_title_holds_is_escaped():
    html = hostile_trace().to_html(title="</title><script>alert(1)</script>")
    assert "<title>&lt;/title&gt;&lt;script&gt;" in html
    check_page(html)


# ---- the numbers


@pytest.fixture(scope="module")
def traced(ensemble):
    return trace(ensemble, QUESTION, **ASKED, threshold=0.9)


def test_a_trace_has_the_answers_of_plain_calls(ensemble, traced):
    wanted = ensemble.generate(QUESTION, **ASKED, threshold=0.9, token_stats=True)
    assert [each.content for each in traced.prompt] == [each["content"] for each in QUESTION]
    assert (traced.output.text, traced.output.tokens) == (wanted.text, wanted.tokens)
    assert list(traced.alone) == ensemble.names
    for name, output in traced.alone.items():
        assert output.text == ensemble.generate(QUESTION, **ASKED, gate=name, threshold=0.0).text
        assert {each.member for entry in output.token_stats for each in entry.members} == {name}


def test_members_alone_are_those_that_take_part(ensemble):
    some = trace(ensemble, QUESTION, max_tokens=2, weights={"birch": 0.0})
    assert list(some.alone) == ["ash", "cedar"]
    assert trace(ensemble, QUESTION, max_tokens=2, gate="birch", threshold=0.0).alone == {}
    assert trace(ensemble, QUESTION, max_tokens=2, alone=False).alone == {}
    sampled = trace(ensemble, QUESTION, max_tokens=4, temperature=1.0)
    again = ensemble.generate(
        QUESTION, max_tokens=4, temperature=1.0, seed=sampled.output.seed, gate="ash", threshold=0.0
    )
    assert sampled.alone["ash"].tokens == again.tokens
    with pytest.raises(RequestError, match="max_tokens"):
        trace(ensemble, QUESTION, max_tokens=0)


def test_views_say_how_each_token_was_selected(ensemble, traced):
    views = token_views(traced.output, ensemble.names)
    assert b"".join(each.token for each in traced.output.token_stats) == b"".join(traced.output.tokens)
    assert {view.kind for view in views} == {"gate", "ensembled"}
    for view, stats in zip(views, traced.output.token_stats, strict=True):
        assert view.confidence == stats.confidence
        assert view.proposers == tuple(each.member for each in stats.members if each.selected == each.probability)
        if view.kind == "gate":
            assert [each.member for each in view.proposals] == [ensemble.gate]
            assert (
                view.decision
                == f"The gate {ensemble.gate} was {stats.members[0].probability:.0%} sure and decided alone."
            )
        else:
            assert len(view.proposals) == 3
            assert view.agreement == pytest.approx(len(view.proposers) / 3)
            assert 0 <= view.unity <= 1
    forced = ensemble.generate(QUESTION, grammar=Grammar.choices(["Halkus"]), token_stats=True)
    assert {view.decision for view in token_views(forced, ensemble.names)} == {"The grammar allowed no other token."}


def test_a_tie_counts_as_in_the_agreement():
    tied = TokenStats(b"b", 0.4, 0.5, 0.1, members=(MemberToken("m", b"a", 0.4, 0.4), MemberToken("n", b"a", 0.6, 0.4)))
    output = replace(hostile_trace().output, tokens=(b"b",), text="b", token_stats=(tied,))
    settings = replace(output.stats.settings, weights={"m": 0.5, "n": 0.5})
    output = replace(output, stats=replace(output.stats, settings=settings))
    (view,) = token_views(output, ["m", "n"])
    assert view.proposers == ("m",)
    assert [(each.token, each.chosen) for each in view.proposals] == [("b", True), ("a", False)]


def test_tokens_after_the_text_are_marked(ensemble):
    output = ensemble.generate(QUESTION, max_tokens=30, token_stats=True, drafts=False)
    stop = output.text[8:10]
    stopped = ensemble.generate(QUESTION, max_tokens=30, token_stats=True, stop=[stop])
    views = token_views(stopped, ensemble.names)
    sizes = [len(b"".join(stopped.tokens[:count])) for count in range(len(stopped.tokens))]
    assert [view.is_outside for view in views] == [size >= len(stopped.text) for size in sizes]
    assert any(view.is_outside for view in views)


def test_the_json_of_a_trace_has_its_numbers(traced):
    values = json.loads(traced.to_json())
    assert (values["version"], values["prompt"], values["answer"]["text"]) == (1, QUESTION, traced.output.text)
    assert len(values["answer"]["gac"]["token_stats"]) == len(traced.output.token_stats)
    assert (
        values["answer"]["gac"]["token_stats"][0]["members"][0]["member"]
        == traced.output.token_stats[0].members[0].member
    )
    assert values["alone"].keys() == traced.alone.keys()


def test_the_page_has_the_numbers(traced):
    page = check_page(traced.to_html())
    assert f"confidence{traced.output.stats.confidence:.0%}" in page.text.replace("\n", "")
    assert "gate" in page.text
    assert sum(tag == "article" for tag, _ in page.elements) == 4


# ---- the command


def run(*arguments):
    return CliRunner().invoke(app, ["trace", *map(str, arguments)])


def test_the_command_writes_pages_and_json(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEXT, encoding="utf-8")
    members = [*EMBEDDED[:2], "--max-tokens", "4", "--weights", "1:2", "--gate", "birch", "--threshold", "0.8"]
    result = run(*members, "--file", prompt, "-o", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    settings = values["answer"]["gac"]
    assert (settings["gate"], settings["threshold"]) == ("birch", 0.8)
    assert settings["weights"] == pytest.approx({"ash": 1 / 3, "birch": 2 / 3})
    result = run(
        *EMBEDDED[:2],
        "--prompt",
        TEXT,
        "--chat",
        "--system",
        "Be brief.",
        "--max-tokens",
        "2",
        "-o",
        tmp_path / "b.html",
    )
    assert result.exit_code == 0, result.output
    page = check_page((tmp_path / "b.html").read_text(encoding="utf-8"))
    assert "Be brief." in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.html"], "give the prompt with either --prompt or --file"),
        (["-o", "x.html", "--prompt", "a", "--file", "b"], "either --prompt or --file"),
        (["-o", "x.html", "--file", "/none/such"], r"cannot read '/none/such' \(--file\): No such file"),
        (["-o", "x.html", "--prompt", "a", "--system", "b"], "give --chat too"),
        (["-o", "x.txt", "--prompt", "a"], "must end in .html or .json, not '.txt'"),
        (["-o", "/none/x.html", "--prompt", "a", "--max-tokens", "1"], r"cannot write '/none/x.html' \(-o\)"),
        (["-o", "x.html", "--prompt", "a", "--threshold", "2"], "number from 0 to 1, or off, not '2'"),
        (["-o", "x.html", "--prompt", "a", "--weights", "1:2:3"], "weights must be 2 numbers"),
        (["-o", "x.html", "--prompt", "a", "--gate", "oak"], "members are: ash, birch"),
        (["-o", "x.html", "--prompt", "a", "--combine", "sum"], "combine must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    result = run(*EMBEDDED[:2], *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.output)
