"""Text comes out whole, in order, and without stop strings, however the bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gac_core.tokenization.detokenizer import Detokenizer


def feed(pieces, stop=()):
    detokenizer = Detokenizer(stop)
    out = ""
    for piece in pieces:
        out += detokenizer.push(piece)
        if detokenizer.stopped_by:
            break
    return out + detokenizer.flush(), detokenizer.stopped_by


def test_half_characters_wait():
    detokenizer = Detokenizer()
    assert detokenizer.push("é".encode()[:1]) == ""
    assert detokenizer.push("é".encode()[1:]) == "é"
    detokenizer.push("漢".encode()[:2])
    assert detokenizer.flush() == "\ufffd"


def test_a_stop_string_across_tokens_is_never_shown():
    detokenizer = Detokenizer(["END", "\n\n"])
    assert detokenizer.push(b"so E") == "so "
    assert detokenizer.push(b"N") == ""
    assert detokenizer.push(b"T\n") == "ENT"
    assert detokenizer.push(b"x END of it") == "\nx "
    assert detokenizer.stopped_by == "END"
    assert detokenizer.flush() == ""


def test_the_stop_string_that_is_complete_first_wins():
    assert feed([b"a###b"], ["#", "###"]) == feed([b"a#", b"##b"], ["#", "###"]) == ("a", "#")
    assert feed([b"abc"], ["c", "b"]) == ("a", "b")
    assert feed([b"xabc"], ["abc", "b"]) == feed([b"x", b"a", b"b", b"c"], ["abc", "b"]) == ("xa", "b")
    assert feed([b"xabc"], ["bc", "abc"]) == ("x", "abc")


def first_complete(text, stop):
    """The text up to the stop string whose end comes first, and that stop string; character by character."""
    for end in range(len(text) + 1):
        whole = [s for s in stop if text[:end].endswith(s)]
        if whole:
            longest = max(whole, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.text("ab#", max_size=12).map(str.encode) | st.binary(max_size=40),
    st.lists(st.integers(0, 40)),
    st.lists(st.text("ab#é", min_size=1, max_size=4), max_size=3),
)
def test_cuts_do_not_matter(data, cuts, stop):
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(at)]
    assert feed(pieces, stop) == first_complete(data.decode(errors="replace"), stop)
