"""Domains of questions: the subjects of MMLU in five groups, and the other tasks."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "MMLU, science": (
        *("astronomy", "college biology", "college chemistry", "college physics", "conceptual physics"),
        *("electrical engineering", "high school biology", "high school chemistry", "high school physics"),
        *("college computer science", "computer security", "high school computer science", "machine learning"),
    ),
    "MMLU, mathematics": (
        *("abstract algebra", "college mathematics", "elementary mathematics", "high school mathematics"),
        *("high school statistics", "formal logic", "econometrics"),
    ),
    "MMLU, medicine": (
        *("anatomy", "clinical knowledge", "college medicine", "human aging", "human sexuality", "medical genetics"),
        *("nutrition", "professional medicine", "virology"),
    ),
    "MMLU, law and humanities": (
        *("high school european history", "high school us history", "high school world history", "prehistory"),
        *("international law", "jurisprudence", "professional law", "logical fallacies", "moral disputes"),
        *("moral scenarios", "philosophy", "world religions"),
    ),
    "MMLU, society and business": (
        *("business ethics", "high school geography", "high school government and politics", "management"),
        *("high school macroeconomics", "high school microeconomics", "high school psychology", "marketing"),
        *("professional accounting", "professional psychology", "public relations", "security studies", "sociology"),
        *("us foreign policy", "global facts", "miscellaneous"),
    ),
}
_GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects}


def domain_of(task: str, domain: str) -> str:
    """Returns the group of an MMLU subject; for questions of other tasks the task.

    Args:
        task: Name of the set of questions.
        domain: Domain of the question.

    Raises:
        KeyError: The subject is in no group.
    """
    return _GROUP_OF[domain] if task == "mmlu" else task
