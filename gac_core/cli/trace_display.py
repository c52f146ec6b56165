"""What ``gac trace`` prints of documents: the answer with the document that carried each token, and its citations."""

from __future__ import annotations

from rich.console import Console
from rich.style import Style
from rich.text import Text

from gac_core.trace.documents import CitationView, DocumentView, citations_of, doubt_facts
from gac_core.trace.documents import documents_of as views_of
from gac_core.trace.record import Trace
from gac_core.trace.tokens import token_views
from gac_core.trace.visible import printable

COLOURS = ("bright_blue", "green", "magenta", "cyan", "bright_black", "bright_magenta", "yellow", "bright_red")
_BEGINNING = 60


def show_documents(found: Trace, console: Console) -> None:
    """Prints the answer of a trace with a letter before each run of tokens that one document carried.

    Letters are coloured if the output is a terminal.

    Args:
        found: The trace, of a request with documents.
        console: Where to.
    """
    documents = views_of(found.output, found.documents)
    console.print(_answer(found), soft_wrap=True)
    console.print()
    for document in documents.values():
        console.print(_document(document), soft_wrap=True)
    for citation in citations_of(found.output, documents):
        console.print(_citation(citation), soft_wrap=True)
    if found.output.doubt is not None:
        console.print(Text(f"answer: {doubt_facts(found.output.doubt)}"), soft_wrap=True)


def _answer(found: Trace) -> Text:
    text, last = Text(), None
    for token in token_views(found.output, list(found.output.stats.settings.weights)):
        if token.document is not None and not token.is_end and token.document != last:
            last = token.document
            text.append(f"[{last.letter}]", _style(last))
        style = Style() if token.document is None else Style(color=COLOURS[token.document.index % len(COLOURS)])
        for piece in token.text:
            text.append(f"<{piece.text}>" if piece.kind == "code" else piece.text, style)
    return text


def _document(document: DocumentView) -> Text:
    line = Text.assemble((f"[{document.letter}]", _style(document)), f" {_line(document.id)} {document.share:.0%}")
    words = _line(document.text or "")
    if words:
        shown = words if len(words) <= _BEGINNING else words[:_BEGINNING].rstrip() + "\u2026"
        line.append(f"  {shown}", Style(dim=True))
    return line


def _citation(citation: CitationView) -> Text:
    line = Text.assemble((f"[{citation.document.letter} {citation.share:.0%}]", _style(citation.document)))
    line.append(f" {printable(citation.text)}")
    line.append(f"  ({citation.members}; {citation.facts})", Style(dim=True))
    return line


def _line(text: str) -> str:
    """Returns a text as one line without hidden characters."""
    return printable(" ".join(text.split()))


def _style(document: DocumentView) -> Style:
    return Style(color=COLOURS[document.index % len(COLOURS)], bold=True)
