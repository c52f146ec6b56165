"""Citations, shares of documents and doubt, on statistics of tokens that are written down here."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gac_core.attribution import TextToken, VoiceWeight, attribute, document_shares, member_shares
from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import FORMS
from gac_core.chat.pieces import TextPiece
from gac_core.doubt import AbsenceCalibration, Doubt, FeatureScale
from gac_core.errors import ConfigError
from gac_core.sentences import sentences
from gac_core.token_stats import TokenStats, Vote
from gac_core.tokenization.offsets import KeptText, character_ranges

SCALE = {"mean": 0, "deviation": 1, "coefficient": 1}
VOICES = [VoiceWeight("x", "a", 2.0), VoiceWeight("x", "b", 1.0), VoiceWeight("y", "a", 1.0)]


def stats(token, x=0.5, y=0.5, *, members=None, gate=False, **others):
    """Statistics of a token to which document ``x`` (both members alike) and ``y`` give some probability."""
    at_b = x if members is None else members
    votes = (Vote("x", "a", 0.5, x), Vote("x", "b", 0.25, at_b), Vote("y", "a", 0.25, y))
    votes = (Vote("x", "a", 1.0, x),) if gate else votes
    return TokenStats(token, 0.5, ensembled=not gate, votes=votes, **others)


def answer(*pieces):
    """The text that tokens write, and the tokens with their places."""
    places = character_ranges(each.token for each in pieces)
    text = b"".join(each.token for each in pieces).decode(errors="replace")
    return text, [TextToken(place, each) for place, each in zip(places, pieces, strict=True)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" \n ", []),
        ("One", ["One"]),
        (" One. Two!  Three? ", ["One.", "Two!", "Three?"]),
        ("It was 3.5 m. Then it fell.", ["It was 3.5 m. Then it fell."]),
        ("It was 3.5 metres. Then it fell.", ["It was 3.5 metres.", "Then it fell."]),
        ("Dr. J. Smith of the U.S. Army, e.g. him. Yes.", ["Dr. J. Smith of the U.S. Army, e.g. him.", "Yes."]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("a first line \n\n1. an item\n2. another", ["a first line", "1. an item", "2. another"]),
        ("approx. three. Four", ["approx. three.", "Four"]),
        ("彼は来た。彼女も。", ["彼は来た。", "彼女も。"]),
    ],
)
def test_sentences(text, found):
    assert [text[each.start : each.stop] for each in sentences(text)] == found


def test_a_character_belongs_to_each_token_that_writes_a_part_of_it():
    tokens = [b"a", b" \xe2", b"\x82", b"\xac!", b"", b"\xff", b"\xe2"]
    text = b"".join(tokens).decode(errors="replace")
    assert text == "a \u20ac!\ufffd\ufffd"
    assert [(place.start, place.stop) for place in character_ranges(tokens)] == [
        (0, 1), (1, 3), (2, 3), (2, 4), (4, 4), (4, 5), (5, 6),
    ]  # fmt: skip


def test_places_among_the_parts_that_were_kept():
    kept = KeptText()
    for start, end in ((2, 4), (4, 5), (8, 10)):
        kept.add(start, end)
    places = [kept.place(range(place, place + 1)) for place in range(12)]
    assert [(each.start, len(each)) for each in places] == [
        (0, 0), (0, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 0), (3, 0), (3, 1), (4, 1), (5, 0), (5, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "tools", "forms"),
    [
        ("  plain text  with space \n", (), ()),
        ("\n<think> a </think>\n\n a b <thi c", (), ()),
        ("<think>a b</think> A. <tool_call>{\"name\": \"t\", \"arguments\": {\"a\": 1}}</tool_call>  b a", ("t",), ()),
        ('x <tool_call>\n{"arguments": {"name": "t"}, "name": "t"}\n</tool_call> y <tool_c', ("t",), ()),
        (' [{"name": "t", "parameters": {"name": "t"}}]\nafter', ("t",), FORMS),
        ("<function=t>{}</function> then", ("t",), FORMS),
        ("a b  c  ", ("t",), FORMS),
    ],
)  # fmt: skip
def test_the_parser_knows_where_text_and_calls_stand(text, tools, forms, size):
    parser = AnswerParser(tools, forms=forms)
    pieces = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
    pieces += parser.finish()
    written = [piece for piece in pieces if isinstance(piece, TextPiece)]
    assert [text[piece.start : piece.start + len(piece.text)] for piece in written] == [piece.text for piece in written]
    assert all(one.start + len(one.text) <= other.start for one, other in pairwise(written))
    for call in parser.calls:
        name, arguments = (text[part.start : part.stop] for part in parser.call_parts[call.id])
        assert (name.strip('"'), arguments) == (call.name, call.arguments)
    assert len(parser.calls) == ("arguments" in text or "parameters" in text or "function" in text)


PARTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "t", "arguments": {"a": 1}}',
    "a",
    " ",
    "\n",
    "<",
    "[",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.sampled_from([(), FORMS]),
    st.booleans(),
    st.integers(1, 9),
)
def test_the_text_of_any_answer_stands_where_the_parser_says(text, forms, inside, size):
    parser = AnswerParser(["t"], inside=inside, forms=forms)
    kept, written = KeptText(), ""
    pieces = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
    for piece in [*pieces, *parser.finish()]:
        if isinstance(piece, TextPiece):
            kept.add(piece.start, piece.start + len(piece.text))
            written += piece.text
    found = [kept.place(range(place, place + 1)) for place in range(len(text))]
    assert "".join(char for char, place in zip(text, found, strict=True) if place) == written
    assert [place.start for place in found if place] == list(range(len(written)))


def test_shares_are_weights_times_likelihoods():
    found = document_shares([stats(b"a", 0.5, 0.1), stats(b"b", 0.25, 0.5)], VOICES)
    # Three quarters of the weight read x.
    wanted = [0.75 * 0.5 * 0.25, 0.25 * 0.1 * 0.5]
    assert found == pytest.approx({"x": wanted[0] / sum(wanted), "y": wanted[1] / sum(wanted)})
    mixed = document_shares([stats(b"a", 0.6, 0.4, members=0.3)], VOICES)
    assert mixed["x"] == pytest.approx(0.75 * 0.5 / (0.75 * 0.5 + 0.25 * 0.4))
    impossible = document_shares([stats(b"a", 0.5, 0.0), stats(b"b", 0.0, 0.0)], VOICES)
    assert impossible["x"] == pytest.approx(1)
    assert document_shares([TokenStats(b"a", 1.0, forced=True)], VOICES) == {}
    assert document_shares([TokenStats(b"a", 0.5, agreement=1.0)], []) == {}


@pytest.mark.parametrize(("x", "y"), [(5e-324, 1.0), (1.0, 5e-324), (5e-324, 5e-324)])
def test_weights_that_are_far_apart_give_shares(x, y):
    text, tokens = answer(*(stats(b"a", 1e-20, 1e-25) for _ in range(200)), stats(b"b", 0.5, gate=True))
    voices = [VoiceWeight("x", "a", x), VoiceWeight("x", "b", x), VoiceWeight("y", "a", y)]
    found = attribute(text, tokens, voices)
    for each in (found.document_shares, found.citations[0].shares, found.citations[0].members):
        assert math.fsum(each.values()) == pytest.approx(1)
    assert found.citations[0].document == "x"
    assert found.doubt.lift is None


def test_voices_without_a_document_do_not_take_from_the_shares():
    # Another voice, without a document, has 0.6 of the vote.
    votes = (Vote("x", "a", 0.3, 0.5), Vote("x", "b", 0.1, 0.5))
    tokens = [TokenStats(b"a", 0.5, votes=votes)]
    assert member_shares(tokens) == pytest.approx({"a": 0.75, "b": 0.25})
    assert document_shares(tokens, VOICES) == pytest.approx({"x": 1.0, "y": 0.0})
    assert member_shares([TokenStats(b"a", 0.5, votes=(Vote("x", "a", 0.0, 0.0),))]) == {"a": 1.0}


def test_the_order_of_voices_does_not_change_shares():
    tokens = [stats(b"a", 0.5, 0.3, members=0.2), stats(b"b", 0.1, 0.3, members=0.7)]
    assert document_shares(tokens, VOICES) == pytest.approx(document_shares(tokens, VOICES[::-1]))


def test_tokens_of_the_gate_alone_count_for_its_document():
    tokens = [stats(b"a", 0.1, 0.9), stats(b"b", 0.9, gate=True)]
    compared = document_shares(tokens[:1], VOICES)
    assert document_shares(tokens[1:], VOICES) == {"x": 1.0, "y": 0.0}
    assert document_shares(tokens, VOICES) == pytest.approx({"x": 0.5 + compared["x"] / 2, "y": compared["y"] / 2})
    assert member_shares(tokens) == pytest.approx({"a": 0.875, "b": 0.125})


def test_an_answer_of_two_sentences_has_two_citations():
    pieces = (
        stats(b" One", 0.9, 0.1, agreement=1.0, entropy=0.1, prior=0.1),
        stats(b".", 0.9, 0.3, agreement=0.5, entropy=0.3, prior=0.3),
        stats(b" ", 0.5, 0.5, agreement=1.0, entropy=0.2, prior=0.5),
        stats(b"Two", 0.1, 0.9, agreement=0.0, entropy=0.8, prior=0.9),
        TokenStats(b"!", 1.0, forced=True, ensembled=False),
        stats(b"", 0.5, 0.5, agreement=0.0, entropy=9.0, prior=0.1),
    )
    text, tokens = answer(*pieces)
    found = attribute(text, tokens, VOICES)
    assert [(each.start, each.end, each.text, each.document) for each in found.citations] == [
        (1, 5, "One.", "x"),
        (6, 10, "Two!", "y"),
    ]
    first, second = found.citations
    assert first.shares == document_shares(pieces[:2], VOICES)
    assert first.share == first.shares["x"] == first.doubt.share
    assert (first.doubt.agreement, first.doubt.least_agreement, first.doubt.entropy) == (0.75, 0.5, pytest.approx(0.2))
    assert first.doubt.lift == pytest.approx((math.log(9) + math.log(3)) / 2)
    assert second.doubt.lift == pytest.approx(0)
    assert second.doubt.logprob == pytest.approx(math.log(0.9))
    # The end of the text is no part of it.
    assert found.doubt.entropy == pytest.approx((0.1 + 0.3 + 0.2 + 0.8) / 4)
    assert found.document_shares == document_shares(pieces[:5], VOICES)
    assert found.doubt.not_in_documents is None


def test_sentences_without_a_space_between_them_have_their_own_tokens():
    text, tokens = answer(stats("来。".encode(), 0.9, 0.1), stats("她。".encode(), 0.1, 0.9))
    assert [(each.text, each.document) for each in attribute(text, tokens, VOICES).citations] == [
        ("来。", "x"),
        ("她。", "y"),
    ]


def test_an_answer_without_text_is_judged_by_all_its_tokens():
    tokens = [TextToken(range(0), stats(b"{", 0.9, 0.1, agreement=1.0))]
    found = attribute("", tokens, VOICES)
    assert found.citations == ()
    assert found.document_shares == document_shares([tokens[0].stats], VOICES)


def test_doubt_without_documents():
    text, tokens = answer(TokenStats(b"a", 0.5, agreement=1.0), TokenStats(b"b", 0.5, agreement=0.5))
    assert attribute(text, tokens).doubt == Doubt(agreement=0.75, least_agreement=0.5)
    assert attribute(*answer(TokenStats(b"a", 0.5))).doubt is None


def test_a_calibration_of_absence_is_read_as_it_was_written(tmp_path):
    scales = {"share": FeatureScale(0.5, 0.1, -2.0), "lift": FeatureScale(1.0, 2.0, -1.0)}
    calibration = AbsenceCalibration(scales, 0.25, 40)
    path = tmp_path / "absence.json"
    path.write_text(calibration.to_json())
    assert AbsenceCalibration.of(str(path)) == AbsenceCalibration.of(calibration) == calibration
    doubt = Doubt(share=0.7, lift=-1.0)
    assert calibration.probability(doubt) == pytest.approx(1 / (1 + math.exp(-(0.25 - 4.0 + 1.0))))
    assert calibration.probability(Doubt(share=0.7)) is None
    assert calibration.applied(doubt).not_in_documents == calibration.probability(doubt)
    text, tokens = answer(stats(b"a", 0.9, 0.1, agreement=1.0, prior=0.1))
    found = attribute(text, tokens, VOICES, calibration)
    assert found.citations[0].doubt.not_in_documents == calibration.probability(found.doubt)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "with the key 'features'"),
        ({"version": 2, "features": {}, "intercept": 0}, "has version 1, not 2"),
        ({"version": 1, "features": {}, "intercept": 0}, "not none"),
        ({"version": 1, "features": {"sharp": {}}, "intercept": 0}, "not 'sharp'"),
        ({"version": 1, "features": {"share": {**SCALE, "deviation": 0}}, "intercept": 0}, "above 0"),
        ({"version": 1, "features": {"share": SCALE}}, "intercept"),
        ({"version": 1, "features": {"share": 3}, "intercept": 0}, "'share' must be a mapping"),
        ("missing.json", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_calibrations_of_absence(values, message):
    with pytest.raises(ConfigError, match=message):
        AbsenceCalibration.of(values)
