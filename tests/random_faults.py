"""Random faults of members in batches of random requests, each of which is compared with its twin."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from conftest import LONG_PROMPT
from faulty import FAULTS, faulty_ensemble, healed, twin

from gac_core import Grammar, MemberError, RequestTimeoutError
from gac_core.decoding import absence


@dataclass
class FaultReport:
    """What came of random faults.

    Attributes:
        faults: How many there were.
        kinds: Which.
        requests: Requests that ran while they happened.
        failed: Requests that ended with an error, since all members had failed.
        dropped: How often a request went on without a member.
        rejoined: How often one took part again.
        drafted: Drafted tokens.
        wrong: Prompts and parameters whose text was not that of its twin.
        hung: Those that did not end.
    """

    faults: int = 0
    kinds: set[str] = field(default_factory=set)
    requests: int = 0
    failed: int = 0
    dropped: int = 0
    rejoined: int = 0
    drafted: int = 0
    wrong: list[object] = field(default_factory=list)
    hung: list[object] = field(default_factory=list)


def random_faults(seed: int, least: int, compact: bool = False) -> FaultReport:
    """Runs batches of requests during random faults, and compares every text with its twin.

    Args:
        seed: Seed of the batches and faults.
        least: How many faults there are at least; each kind occurs.
        compact: As in `LocalExecutor`.
    """
    rng, report, due = random.Random(seed), FaultReport(), list(FAULTS)
    faulty = faulty_ensemble(compact, on_member_failure="drop", forward_timeout=1.0)
    with pytest.MonkeyPatch.context() as patch, faulty as (one, executor):
        patch.setattr(absence, "REJOIN_PAUSE", 0.0)
        while report.faults < least or due:
            _one_batch(rng, report, one, executor, due)
    return report


GRAMMAR = Grammar.regex("[a-z ]{30}")
PROMPTS = [LONG_PROMPT, "Where is bridge 1", "Who", "1874 crowns, 14:15", "one two one two one two"]


def _one_batch(rng: random.Random, report: FaultReport, one, executor, due: list[str]) -> None:
    asked = [
        {
            "prompt": rng.choice(PROMPTS),
            "max_tokens": rng.randrange(4, 20),
            "drafts": rng.random() < 0.7,
            "temperature": rng.choice([0.0, 0.0, 0.8]),
            "seed": rng.randrange(1000),
            "threshold": rng.choice([None, None, 0.6]),
            "grammar": rng.choice([None, None, None, GRAMMAR]),
            "frequency_penalty": rng.choice([0.0, 0.0, 1.5]),
            "logit_bias": rng.choice([None, None, {" the": 6.0, "e": 5.0, " of": 4.0}]),
        }
        for _ in range(rng.randrange(1, 5))
    ]
    # A hang takes a whole forward_timeout.
    weights = [6, 3, 6, 3, 0.15, 6]

    def script(name, request_id):
        if rng.random() > 0.12:
            return None
        return due.pop() if due else rng.choices(FAULTS, weights)[0]

    executor.given.clear()
    executor.script, executor.restore_after = script, rng.randrange(1, 6)
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(one.generate, **own, timeout=60) for own in asked]
    report.faults += len(executor.given)
    report.kinds |= set(executor.given)
    report.requests += len(asked)
    healed(executor)
    for own, future in zip(asked, futures, strict=True):
        if isinstance(future.exception(), RequestTimeoutError):
            report.hung.append(own)
        elif isinstance(future.exception(), MemberError):
            report.failed += 1
        else:
            output = future.result()
            report.dropped += len(output.stats.dropped)
            report.rejoined += sum(each.rejoined_at is not None for each in output.stats.dropped)
            report.drafted += output.stats.drafted
            while not one.health().healthy:
                executor.refresh()
                time.sleep(0.001)
            if (
                twin(one, executor, own["prompt"], output, **{k: v for k, v in own.items() if k != "prompt"})
                != output.tokens
            ):
                report.wrong.append((own, output.stats.dropped))
