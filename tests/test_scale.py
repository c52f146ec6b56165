"""The page on cost at scale: its tables are what the script prints, and its model adds up."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, ROOT, SHARED

pytest.importorskip("ray")

from benchmarks import scale_cost
from benchmarks.messages import Messages
from benchmarks.scale_cost import CARD, LINKS, RAY, Exchange, exchanges, report, seconds, share
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
ONE_PROCESS = [link for link in LINKS if not link.ray]
NETWORK = [link for link in LINKS if link.latency and link.ray]


@pytest.mark.shared
def test_the_page_holds_what_the_script_prints():
    command = next(line for line in PAGE.splitlines() if "benchmarks.scale_cost" in line)
    folders = [str(SHARED.parent / name.removeprefix("../")) for name in command.split() if name.startswith("../")]
    assert len(folders) == 3
    assert report(folders) in PAGE


@pytest.fixture(scope="module")
def kinds(request):
    from conftest import tokenizer_of

    tokenizers = [MemberTokenizer(tokenizer_of(folder), folder, rows=len(tokenizer_of(folder))) for folder in EMBEDDED]
    messages = Messages(UnionVocabulary(tokenizers), tokenizers[0])
    return {kind.name: kind for kind in exchanges(messages)}


def test_messages_are_as_large_as_their_contents(kinds):
    """The most probable tokens do not depend on the vocabulary, a whole distribution has four bytes per token."""
    greedy, sampled, batch = (kinds[name] for name in ("greedy", "sampled", "sampled, 16 requests"))
    assert sampled.copied < sampled.answered[0] < sampled.copied + 1000
    assert 16 * sampled.copied < batch.answered[0] < 16 * (sampled.copied + 1000)
    assert 20 * (4 + 4) < greedy.answered[0] < 1000
    prompt = kinds["greedy, a prompt of 2,000"]
    assert 4 * 1999 <= prompt.sent[0] - greedy.sent[0] < 4 * 2000 + 100
    masked = kinds["greedy, a grammar"]
    assert greedy.copied / 32 < masked.sent[0] - greedy.sent[0] < greedy.copied / 32 + 200


def test_times_follow_from_bytes_and_assumptions():
    """Each figure by hand."""
    kind = Exchange("two trips", (1000, 500), (2000, 3000), copied=10**6)
    for link in ONE_PROCESS:
        assert seconds(kind, link, 1) == 0
        assert seconds(kind, link, 3) == pytest.approx(2 * (link.latency + 1e6 / link.bandwidth))
    for link in NETWORK:
        sent = 4 * (6500 + 2 * RAY.overhead)
        calls = 2 * (RAY.first + 3 * RAY.further + link.latency)
        assert seconds(kind, link, 4) == pytest.approx(calls + sent / link.bandwidth + sent / RAY.throughput)
        assert share(kind, link, 4, 7) == pytest.approx(1 / (1 + CARD.forward(7) / seconds(kind, link, 4)))
    assert CARD.forward(70) == pytest.approx(140e9 / 3.35e12)


def test_more_members_and_slower_links_cost_more(kinds):
    for kind in kinds.values():
        for link in LINKS:
            times = [seconds(kind, link, members) for members in scale_cost.MEMBERS]
            assert times == sorted(times)
        for ordered in (ONE_PROCESS, NETWORK):
            fast, slow = (seconds(kind, link, 4) for link in ordered)
            assert fast < slow
