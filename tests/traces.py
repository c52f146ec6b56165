"""A trace whose tokens would be dangerous or invisible on a page that writes them as they are."""

from __future__ import annotations

from gac_core import (
    EffectiveSettings,
    FinishReason,
    MemberStats,
    MemberToken,
    RequestOutput,
    RequestStats,
    TokenStats,
    Usage,
)
from gac_core.trace import Trace

NAMES = ("ash<b>", "birch&amp;", "\u202ecedar")
HOSTILE = (
    b"</script><img src=x onerror=alert(1)>",
    b"<script>alert(1)</script>",
    b"\"'><svg onload=alert(1)>",
    b"{{ 7 * 7 }}{% raw %}",
    b"</style></title></label></div>",
    "\u202egnp.exe\u202c".encode(),
    "\u2066\u200f\u200b\ufeff\U000e0041".encode(),
    b"\x00\x1b[31mred\x07\x08\r\x7f",
    b" ",
    b"\n\n",
    b"\t\tif x:\n",
    b"&lt;b&gt; &#60;",
    "\u0301".encode(),
    "\u05e9\u05dc\u05d5\u05dd".encode(),
    "\u00a0\u3000".encode(),
    "\U0001f600".encode()[:2],
    "\U0001f600".encode()[2:],
    b"\xff\xfe",
    b"x" * 200,
    "\u597d".encode()[:1],
)


def hostile_trace(tokens=HOSTILE, names=NAMES) -> Trace:
    """A trace that holds some tokens in every place: prompt, answer, proposals, names, reasons."""
    text = b"".join(tokens).decode(errors="replace")
    settings = EffectiveSettings(gate=names[0], threshold=0.5, weights={name: 1 / len(names) for name in names})
    stats = RequestStats(settings, members={name: MemberStats(3, 2, 5, 1, 0.5) for name in names})
    entries = [_entry(token, tokens[place - 1], place, names) for place, token in enumerate([*tokens, b""])]
    for entry in entries:
        stats.note(entry)
    stats.left_out[names[-1]] = text
    output = RequestOutput(
        request_id="r",
        text=text,
        tokens=tuple(tokens),
        finish_reason=FinishReason.STOP,
        stopped_by=text[:40],
        usage=Usage(3, len(tokens)),
        stats=stats,
        logprobs=None,
        seed=None,
        token_stats=tuple(entries),
    )
    return Trace(text, output, dict.fromkeys(names, output))


def _entry(token, other, place, names) -> TokenStats:
    """Ensembled, decided by the gate, or forced, in turn."""
    members = tuple(
        MemberToken(name, token if (place + index) % 3 else other, 0.6, 0.6 if (place + index) % 3 else 0.2)
        for index, name in enumerate(names)
    )
    if place % 4 == 1:
        return TokenStats(token, 0.6, ensembled=False, members=members[:1])
    if place % 4 == 2:
        return TokenStats(token, 1.0, ensembled=False, forced=True)
    agreed = sum(each.token == token for each in members) / len(members)
    return TokenStats(token, (place % 10) / 10, agreed, 0.3, members=members)
