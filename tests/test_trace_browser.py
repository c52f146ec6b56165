"""The page of a trace in a browser: with scripts and without, on wide and narrow screens, by mouse and keyboard."""

from __future__ import annotations

import pytest
from browser import PHONE, WIDE, chromium, opened
from conftest import QUESTION
from traces import HOSTILE, NAMES, hostile_trace

from gac_core.trace import trace

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "trace.html"
    path.write_text(hostile_trace().to_html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answer(ensemble, tmp_path_factory):
    """A page of the embedded members' answer, and its trace."""
    traced = trace(ensemble, QUESTION, max_tokens=12, threshold=0.9)
    path = tmp_path_factory.mktemp("answer") / "trace.html"
    path.write_text(traced.to_html(), encoding="utf-8")
    return path, traced


def shown_panel(page):
    panels = page.locator(".panel:visible")
    assert panels.count() <= 1
    return panels.inner_text() if panels.count() else None


@pytest.mark.parametrize(
    ("scripts", "size", "scheme"),
    [(True, WIDE, "light"), (False, WIDE, "dark"), (True, PHONE, "dark"), (False, PHONE, "light")],
)
def test_a_page_of_hostile_tokens_is_harmless(browser, hostile, scripts, size, scheme):
    with opened(browser, hostile, size, scripts, scheme) as page:
        assert page.locator("script, img, svg, iframe").count() == 0
        assert page.locator(".answer > label").count() == len(HOSTILE) + 1
        assert page.locator("#k1").inner_text() == HOSTILE[0].decode()
        assert page.title().endswith("trace")
        # Nothing is wider than the screen, except tables, which scroll within themselves.
        widths = [page.locator(name).bounding_box()["width"] for name in ("main", ".answer", ".prompt")]
        assert max(widths) <= size[0]


def test_nothing_overflows_the_screen(browser, hostile):
    for size in (WIDE, PHONE):
        with opened(browser, hostile, size) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_selected_token_shows_what_each_member_wanted(browser, answer, size):
    path, traced = answer
    with opened(browser, path, size, scripts=False) as page:
        assert shown_panel(page) is None
        for number, stats in enumerate(traced.output.token_stats, 1):
            page.locator(f"#k{number}").click()
            panel = shown_panel(page)
            assert f"Token {number} of {len(traced.output.token_stats)}" in panel
            assert f"{stats.confidence * 100:.1f}%" in panel
            assert page.locator(".panel:visible tbody tr").count() == len(stats.members)
            for member in stats.members:
                assert f"{member.probability * 100:.1f}%" in panel
                assert member.member in panel
        page.locator(".panel:visible .close").click()
        assert shown_panel(page) is None


def test_tokens_are_reached_by_the_keyboard(browser, answer):
    with opened(browser, answer[0], scripts=False) as page:
        page.locator(".answer").scroll_into_view_if_needed()
        page.locator("#t0").focus()
        for number in (1, 2, 3):
            page.keyboard.press("ArrowRight")
            assert f"Token {number} of" in shown_panel(page)
        page.keyboard.press("ArrowLeft")
        assert "Token 2 of" in shown_panel(page)
        assert page.get_by_role("radio", name="Token 2:").count() == 1


def test_colours_show_what_is_selected(browser, hostile):
    with opened(browser, hostile) as page:

        def colours():
            return page.locator(".answer > label").evaluate_all(
                "nodes => nodes.map(node => getComputedStyle(node).getPropertyValue('--bg').trim())"
            )

        by_confidence = colours()
        page.get_by_text("Agreement", exact=True).click()
        by_agreement = colours()
        assert len({*by_confidence, *by_agreement}) >= 4
        assert by_confidence != by_agreement
        assert "members that proposed it" in page.locator(".legend").inner_text()
        page.get_by_text("Divergence", exact=True).click()
        assert colours() not in (by_confidence, by_agreement)


def test_the_table_of_all_tokens_opens_without_scripts(browser, hostile):
    with opened(browser, hostile, scripts=False) as page:
        assert not page.locator("details table").is_visible()
        page.get_by_text("All tokens as a table").click()
        assert page.locator("details tbody tr").count() == len(HOSTILE) + 1
        assert NAMES[0] in page.locator("details thead").inner_text()
