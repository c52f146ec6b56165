"""Word lists whose tokenization is compared: common and rare words, words of school subjects, Python code, numbers."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

from gac_core.evaluation.questions import Question, QuestionSet
from gac_core.inspection import common_words

RARE_FROM = 50_000
# Subjects of MMLU by domain.
DOMAINS: dict[str, tuple[str, ...]] = {
    "chemistry": ("high school chemistry", "college chemistry"),
    "physics": ("astronomy", "college physics", "conceptual physics", "electrical engineering", "high school physics"),
    "biology, medicine": (
        *("anatomy", "clinical knowledge", "college biology", "college medicine", "high school biology"),
        *("human aging", "medical genetics", "nutrition", "professional medicine", "virology"),
    ),
    "mathematics": (
        *("abstract algebra", "college mathematics", "elementary mathematics", "high school mathematics"),
        *("high school statistics", "formal logic"),
    ),
    "computing": ("college computer science", "high school computer science", "computer security", "machine learning"),
    "law": ("international law", "jurisprudence", "professional law"),
    "economics, business": (
        *("business ethics", "econometrics", "high school macroeconomics", "high school microeconomics"),
        *("management", "marketing", "professional accounting", "public relations"),
    ),
    "history": ("high school european history", "high school us history", "high school world history", "prehistory"),
}


def rare_words(count: int = 5000) -> list[str]:
    """Returns the ``count`` English words after the 50,000 most frequent ones."""
    return common_words(RARE_FROM + count)[RARE_FROM:]


def domain_words(texts: Iterable[str], common: Iterable[str]) -> list[str]:
    """Returns the distinct words of texts that are in small letters throughout and not common, sorted.

    Words with a capital letter are left out: most are names, or begin a sentence.

    Args:
        texts: Questions and answers.
        common: Words to leave out.
    """
    found = {word for text in texts for word in re.findall(r"[^\W\d_]{2,}", text) if word == word.lower()}
    return sorted(found - set(common))


def domain_texts(questions: Iterable[Question]) -> dict[str, list[str]]:
    """Returns the questions and choices of each domain of MMLU."""
    asked = list(questions)
    return {
        name: [text for each in asked if each.domain in subjects for text in (each.question, *each.choices)]
        for name, subjects in DOMAINS.items()
    }


def code_texts(sources: Iterable[str]) -> dict[str, list[str]]:
    """Returns distinct pieces of Python code: identifiers and operators after a space, and beginnings of lines.

    Args:
        sources: Texts of Python files.

    Returns:
        By kind, sorted texts. The beginning of a line is a line break, the indentation and the first word.
    """
    names, operators, starts = set(), set(), set()
    for source in sources:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                names.add(f" {token.string}")
            elif token.type == tokenize.OP:
                operators.add(f" {token.string}")
        starts.update(re.findall(r"\n +\w+", source))
    return {"identifiers": sorted(names), "operators": sorted(operators), "indented line starts": sorted(starts)}


def word_lists(mmlu: QuestionSet, code: Path) -> dict[str, list[str]]:
    """Returns the texts of every category, each as it is given to the tokenizers.

    Args:
        mmlu: The questions of MMLU.
        code: Folder of Python files.
    """
    common = common_words()
    words = {"common words": common, "rare words": rare_words()}
    asked = (*mmlu.questions, *mmlu.shots)
    words |= {name: domain_words(texts, common) for name, texts in domain_texts(asked).items()}
    words["years 1500 to 2025"] = [str(year) for year in range(1500, 2026)]
    sources = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    return {name: [f" {word}" for word in each] for name, each in words.items()} | code_texts(sources)
