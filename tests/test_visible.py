"""Text of tokens and for terminals: every character can be seen, and none has an effect."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gac_core.trace.visible import characters, is_hidden, label, pieces, printable


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" the", "\u2423the"),
        (b"\n\t", "\u21b5\u21e5"),
        ("\u202eab".encode(), "<U+202E>ab"),
        (b"a\x00\x1b", "a<U+0000><U+001B>"),
        (b"\xe2\x82", "<E2><82>"),
        ("\u0301".encode(), "\u25cc\u0301"),
        ("e\u0301".encode(), "e\u0301"),
        ("\u00a0".encode(), "<U+00A0>"),
        ("\ufe0f".encode(), "<U+FE0F>"),
        (b"", ""),
    ],
)
def test_bytes_have_a_visible_form(data, shown):
    assert label(data) == shown


@given(st.binary(max_size=40))
def test_no_bytes_are_hidden(data):
    shown = label(data)
    assert not any(is_hidden(char) for char in shown)
    assert bool(shown) == bool(data)
    assert all(piece.text for piece in pieces(data))


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_characters_of_tokens_are_those_of_the_text(tokens):
    found = characters(tokens)
    assert len(found) == len(tokens)
    assert b"".join(found) == b"".join(tokens)
    text = "".join(each.decode(errors="replace") for each in found)
    assert text.replace("\ufffd", "") == b"".join(tokens).decode(errors="ignore")


def test_a_character_belongs_to_the_token_that_completes_it():
    smile = "\U0001f600".encode()
    assert characters([b"a", smile[:2], smile[2:], b"b"]) == [b"a", b"", smile, b"b"]
    assert characters([smile[:2], b"c"]) == [b"", smile[:2] + b"c"]
    assert characters([b"c", smile[:2]]) == [b"c", smile[:2]]


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_printable_text_has_no_effect_on_a_terminal(text):
    shown = printable(text)
    for char in shown:
        if char not in "\n\t\u200c\u200d":
            assert unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp", "Cs")


def test_printable_text_keeps_what_is_harmless():
    family = "\U0001f468\u200d\U0001f469 \u2764\ufe0f"
    assert printable(f"a\n\tb\u00e9 {family}") == f"a\n\tb\u00e9 {family}"
    assert printable("\x1b[2Ja\rb\u202e") == "<U+001B>[2Ja<U+000D>b<U+202E>"
