"""The error of evaluations."""

from __future__ import annotations

from gac_core.errors import GaCError


class EvaluationError(GaCError):
    """Questions, metrics or results cannot be used, or a question could not be answered.

    Args:
        what: What is wrong and what to do about it.
        member: Name of the member that failed; None if none did.
        question: Id of the question; None if the error concerns no single one.
    """

    def __init__(self, what: str, member: str | None = None, question: str | None = None) -> None:
        super().__init__(what)
        self.member = member
        self.question = question
