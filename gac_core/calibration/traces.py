"""What the members proposed at each step of an answer, from which other thresholds follow without generating again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gac_core.evaluation.errors import EvaluationError
from gac_core.output import RequestOutput

Key = tuple[str, str]


@dataclass(frozen=True)
class StepTrace:
    """One step at which all members were combined.

    Attributes:
        certainty: By member, the largest probability of its own distribution.
        agreed: The members whose most probable token was the selected one.
    """

    certainty: Mapping[str, float]
    agreed: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The steps of one answer, in order."""

    steps: tuple[StepTrace, ...]

    @classmethod
    def of(cls, output: RequestOutput) -> Trace:
        """Returns the trace of an output with statistics of tokens, each step of which was ensembled."""
        return cls(
            tuple(
                StepTrace(
                    {each.member: each.probability for each in token.members},
                    tuple(each.member for each in token.members if each.token == token.token),
                )
                for token in output.token_stats or ()
                if not token.forced
            )
        )

    def ensembled(self, gate: str, threshold: float) -> int:
        """Returns how many steps would be ensembled with a gate and a threshold, if the text stayed the same."""
        return sum(step.certainty.get(gate, 0.0) < threshold for step in self.steps)

    def can_change(self, gate: str, threshold: float) -> bool:
        """Returns whether the answer may be another one with a gate and a threshold.

        Where the gate's certainty is below the threshold, all members are combined as before. Where it is not, and the
        gate's most probable token is the selected one, the gate selects the same.
        """
        return any(step.certainty.get(gate, 0.0) >= threshold and gate not in step.agreed for step in self.steps)


class Traces:
    """The traces of answers, kept in a file of JSON lines if it has one.

    Args:
        path: The file, which is continued if it exists. None (default): memory only.

    Raises:
        EvaluationError: The file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.by_key: dict[Key, Trace] = {}
        if path is None or not path.exists():
            return
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            for line in lines:
                if line.endswith("}"):
                    row = json.loads(line)
                    steps = tuple(StepTrace(step[0], tuple(step[1])) for step in row["steps"])
                    self.by_key[row["task"], row["id"]] = Trace(steps)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise EvaluationError(f"cannot read the traces {path}: {error}; remove the file to begin anew") from error

    def add(self, traces: Mapping[Key, Trace]) -> None:
        """Adds traces and appends them to the file."""
        self.by_key.update(traces)
        if self._path is None:
            return
        rows = [
            {"task": task, "id": id_, "steps": [[dict(step.certainty), list(step.agreed)] for step in trace.steps]}
            for (task, id_), trace in traces.items()
        ]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A line that an interrupted run left incomplete is ended first.
                file.write("".join(f"\n{json.dumps(row)}" for row in rows) + "\n")
        except OSError as error:
            raise EvaluationError(f"cannot write the traces {self._path}: {error.strerror or error}") from error


def share_ensembled(traces: Sequence[Trace], gate: str, threshold: float) -> float:
    """Returns the share of steps that would be ensembled, 0 to 1, if texts stayed the same."""
    steps = sum(len(trace.steps) for trace in traces)
    return sum(trace.ensembled(gate, threshold) for trace in traces) / steps if steps else 0.0


def threshold_for_share(traces: Sequence[Trace], gate: str, share: float) -> float:
    """Returns the largest threshold with which at most a share of the steps is ensembled.

    Args:
        traces: The answers.
        gate: Name of the gate.
        share: 0 to 1.

    Returns:
        A threshold from 0 to 1, with three decimals, rounded down.
    """
    values = sorted(step.certainty.get(gate, 0.0) for trace in traces for step in trace.steps)
    allowed = int(share * len(values))
    if allowed >= len(values):
        return 1.0
    # Steps below the threshold are ensembled: `allowed` of them at most.
    return int(values[allowed] * 1000) / 1000
