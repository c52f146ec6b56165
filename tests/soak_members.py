"""An ensemble on Ray whose members fail on command while it answers, and the plain twin of its answers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reference
from architectures import random_model
from conftest import EMBEDDED, tokenizer_of
from faulty_folders import FaultyFolder, faulty_folder

from gac_core import DroppedMember, Ensemble, EnsembleConfig, MemberConfig, MemberError
from gac_core.events import Event, MemberFailed, StepDone

TOKENS = 48
# Seconds: of one forward, after which it counts as hung; of an answer beyond that; until all members work again.
FORWARD_TIMEOUT, ANSWER_TIMEOUT, RECOVERY_TIMEOUT = 3.0, 60.0, 180.0
# Seconds after a failure until a request tries the member again, and what makes a step last until then.
BACKOFF, PAUSE = 2.0, 0.5
PROMPTS = ["The bridge stands in Halkus and", "one two three one two three one two", "1874 crowns, 14:15, " * 8]
# The texts of random members are no text: the reference and this project cut invalid characters anew differently.
COMMIT = "context-free"
SETTINGS: list[dict[str, Any]] = [{}, {"drafts": False}, {"threshold": 0.6}, {"combine": "geometric"}]


@dataclass(frozen=True)
class Incident:
    """Something that goes wrong while requests run.

    Attributes:
        kind: The row of the table that it counts for.
        fault: What happens to the members: ``"kill"``, ``"stop"``, ``"nan"`` or ``"memory"``.
        phase: When: in a forward of ``"prefill"``, ``"decode"`` or ``"verify"``; or ``"between"`` two steps.
        skip: How many of these go well before.
        members: The indices of the members.
        slow: Whether the requests last until the members are back.
    """

    kind: str
    fault: str
    phase: str
    skip: int
    members: tuple[int, ...]
    slow: bool = False


@dataclass
class Outcome:
    """What an incident came to.

    Attributes:
        incident: The incident.
        happened: Whether the fault occurred; a draft is not always verified, for example.
        results: One for each request: ``"whole"``, ``"dropped"``, ``"rejoined"``, ``"error"``; or what is wrong.
        seconds: The longest time from the fault's order to the end of a request.
        recovery: Seconds until all members worked again.
    """

    incident: Incident
    happened: bool
    results: list[str]
    seconds: float
    recovery: float

    GOOD = frozenset(["whole", "dropped", "rejoined", "error"])

    @property
    def wrong(self) -> list[str]:
        """What must not be."""
        late = [] if self.recovery < float("inf") else [f"not all members work again after {RECOVERY_TIMEOUT} s"]
        return [result for result in self.results if result not in self.GOOD] + late

    @property
    def summary(self) -> str:
        """One line."""
        happened = "" if self.happened else "did not happen, "
        return f"{happened}{self.results}, {self.seconds:.1f} s, all back after {self.recovery:.1f} s"


@dataclass
class Answer:
    """One request in a thread of its own.

    Attributes:
        prompt: Its prompt.
        settings: Its parameters.
        output: The output, or the error.
        seconds: How long it took.
    """

    prompt: str
    settings: dict[str, Any]
    output: Any = None
    seconds: float = 0.0
    thread: threading.Thread = field(default_factory=threading.Thread)

    def start(self, ensemble: Ensemble) -> None:
        """Starts it."""
        self.thread = threading.Thread(target=self._run, args=(ensemble,), daemon=True)
        self.thread.start()

    def _run(self, ensemble: Ensemble) -> None:
        began = time.monotonic()
        try:
            self.output = ensemble.generate(self.prompt, max_tokens=TOKENS, **self.settings)
        except BaseException as error:
            self.output = error
        self.seconds = time.monotonic() - began


class Soak:
    """An ensemble of three members on Ray that fail on command, and its plain twin.

    Args:
        parent: A new folder for the models.
        address: The cluster.
        policy: `EnsembleConfig.on_member_failure`.

    Attributes:
        folders: The members' folders.
    """

    def __init__(self, parent: Path, address: str, policy: str) -> None:
        self.folders, self._plain = faulty_models(parent)
        self._texts: dict[tuple[Any, ...], tuple[list[bytes], bool]] = {}
        self._slow, self._failed_at = False, 0.0
        # Set where the members are to be killed after so many steps.
        self._countdown: tuple[int, Sequence[int]] | None = None
        self._killed = False
        self._runs = 0
        self.policy = policy
        self._ensemble = Ensemble.from_config(ensemble_config([each.path for each in self.folders], address, policy))
        self._ensemble.add_listener(self._on_event)

    def close(self) -> None:
        """Closes the ensemble."""
        self._ensemble.close()

    def _on_event(self, event: Event) -> None:
        """Between two steps: kills members, and lets steps last until those that failed are back."""
        if isinstance(event, MemberFailed):
            self._failed_at = time.monotonic()
        if not isinstance(event, StepDone) or not event.requests:
            return
        if self._countdown is not None:
            left, members = self._countdown
            self._countdown = (left - 1, members) if left else None
            if not left:
                for index in members:
                    os.kill(self.folders[index].alive()[-1], signal.SIGKILL)
                self._killed = True
        failing = time.monotonic() < self._failed_at + BACKOFF or not self._ensemble.health().healthy
        if self._slow and self._failed_at and failing:
            time.sleep(PAUSE)

    def run(self, incident: Incident) -> Outcome:
        """Lets an incident happen while three requests run; returns what came of it."""
        self._runs += 1
        rng = random.Random(f"requests {self._runs}")
        self._killed = False
        self._slow, self._failed_at = incident.slow, 0.0
        if incident.phase == "between":
            self._countdown = (incident.skip, incident.members)
        else:
            for index in incident.members:
                self.folders[index].order(incident.fault, incident.phase, incident.skip)
        # No prompt was read before, so that all of it is computed.
        answers = [Answer(f"{self._runs} {prompt}", rng.choice(SETTINGS)) for prompt in PROMPTS]
        for answer in answers:
            answer.start(self._ensemble)
        until = time.monotonic() + FORWARD_TIMEOUT + ANSWER_TIMEOUT
        for answer in answers:
            answer.thread.join(max(0.0, until - time.monotonic()))
        happened = self._killed
        if incident.phase != "between":
            happened = sum(self.folders[index].withdraw() for index in incident.members) > 0
        self._countdown, self._slow = None, False
        recovery = self._recover()
        results = [self._result(answer, incident) for answer in answers]
        return Outcome(incident, happened, results, max(answer.seconds for answer in answers), recovery)

    def _recover(self) -> float:
        """Returns the seconds until all members work; infinity if they do not."""
        began = time.monotonic()
        while time.monotonic() < began + RECOVERY_TIMEOUT:
            if self._ensemble.health().healthy:
                return time.monotonic() - began
            time.sleep(0.1)
        return float("inf")

    def _result(self, answer: Answer, incident: Incident) -> str:
        """Returns what an answer is, or what is wrong with it."""
        if answer.thread.is_alive():
            return "hangs"
        output, names = answer.output, [self._ensemble.names[index] for index in incident.members]
        if isinstance(output, MemberError) and self.policy == "fail":
            return "error" if output.member in names else f"an error of {output.member}: {output}"
        if isinstance(output, BaseException):
            return f"{type(output).__name__}: {output}"
        dropped = output.stats.dropped
        if dropped and (self.policy == "fail" or not {each.member for each in dropped} <= set(names)):
            return f"without {dropped}"
        tokens, ended = self._expected(answer, dropped)
        if list(output.tokens) != tokens or (output.finish_reason == "stop") != ended:
            return f"{output.text!r} instead of {b''.join(tokens)!r}, {dropped}"
        if not dropped:
            return "whole"
        return "dropped" if any(each.rejoined_at is None for each in dropped) else "rejoined"

    def _expected(self, answer: Answer, dropped: Sequence[DroppedMember]) -> tuple[list[bytes], bool]:
        """Returns the tokens of the plain reference, with the members that took part, and whether the text ended."""
        names = self._ensemble.names
        settings = {key: value for key, value in answer.settings.items() if key != "drafts"}
        spans = tuple((names.index(each.member), each.at_token, each.rejoined_at) for each in dropped)
        key = (answer.prompt, tuple(settings.items()), spans)

        def absent(count: int) -> set[int]:
            return {index for index, first, back in spans if first <= count and (back is None or count < back)}

        if key not in self._texts:
            gate = names.index(self._ensemble.gate)
            self._texts[key] = reference.generate(
                self._plain, answer.prompt, TOKENS, gate=gate, commit=COMMIT, absent=absent, **settings
            )
        return self._texts[key]


def faulty_models(parent: Path) -> tuple[list[FaultyFolder], list[reference.PlainMember]]:
    """Saves three random models with different tokenizers in a new folder; returns them with their plain twins."""
    tokenizers = [tokenizer_of(folder) for folder in EMBEDDED]
    models = [
        random_model("llama", tokenizer, seed, max_position_embeddings=1024)
        for seed, tokenizer in enumerate(tokenizers)
    ]
    pairs = list(zip(models, tokenizers, strict=True))
    folders = [faulty_folder(*pair, parent / f"m{index}") for index, pair in enumerate(pairs)]
    return folders, [reference.PlainMember(*pair) for pair in pairs]


def ensemble_config(paths: Sequence[Path], address: str, policy: str) -> EnsembleConfig:
    """Returns the configuration of an ensemble of faulty members on a cluster."""
    members = tuple(MemberConfig(str(path), dtype="float32", device="cpu", trust_remote_code=True) for path in paths)
    return EnsembleConfig(
        members,
        commit=COMMIT,
        executor="ray",
        ray_address=address,
        on_member_failure=policy,
        forward_timeout=FORWARD_TIMEOUT,
    )
