"""Members on Ray that are killed, hang or compute NaN while they answer, and programs that are killed.

Every answer must be the text that the plain reference writes with the members that took part at each token; or, with
``on_member_failure="fail"``, an error that names the member. ``python tests/soak_ray.py`` prints a table of what
happened; `test_soak_ray.py` runs a few.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from faulty_folders import running
from raynodes import started_nodes
from soak_members import PROMPTS, TOKENS, Incident, Outcome, Soak, ensemble_config, faulty_models

from gac_core import Ensemble

POLICIES = ("fail", "drop")
PHASES = ("prefill", "decode", "verify", "between")
# How many of each kind; half of them with each policy.
COUNTS = {"killed": 50, "hung": 20, "NaN": 20, "out of memory": 10, "two at once": 10, "program killed": 6}
FAULTS = {"killed": "kill", "hung": "stop", "NaN": "nan", "out of memory": "memory", "two at once": "kill"}
# A fault that does not occur, such as in the verification of a draft where none is made, is ordered anew.
TRIES = 3
# Hands the cluster's token to a program, since `conftest` makes one of its own.
TOKEN = "GAC_SOAK_RAY_TOKEN"


def incident(kind: str, number: int, policy: str) -> Incident:
    """Returns one incident; each number gives another phase, member and moment."""
    rng = random.Random(f"{kind} {number} {policy}")
    phases = PHASES if FAULTS[kind] == "kill" else PHASES[:3]
    phase = phases[number % len(phases)]
    return Incident(
        kind=kind,
        fault=FAULTS[kind],
        phase=phase,
        skip=0 if phase == "prefill" else rng.randrange(3 if phase == "verify" else 20),
        members=tuple(rng.sample(range(3), 2 if kind == "two at once" else 1)),
        slow=policy == "drop" and number % 3 == 0,
    )


def soak(policy: str, counts: dict[str, int], address: str, folder: Path) -> list[Outcome]:
    """Returns what the incidents of one policy came to; prints each."""
    outcomes = []
    members = Soak(folder, address, policy)
    try:
        for kind, count in counts.items():
            for number in range(count if kind in FAULTS else 0):
                for attempt in range(TRIES):
                    outcome = members.run(incident(kind, number + 1200 * attempt, policy))
                    outcomes.append(outcome)
                    print(policy, kind, number, outcome.incident.phase, outcome.summary, flush=True)
                    if outcome.happened:
                        break
    finally:
        members.close()
    leaked = wait_gone([pid for each in members.folders for pid in each.pids()])
    assert not leaked, f"processes of members that outlived their ensemble: {leaked}"
    return outcomes


def wait_gone(pids: Sequence[int], seconds: float = 20.0) -> list[int]:
    """Returns those of some processes that still run after some seconds."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def run_program(address: str, folders: Sequence[str]) -> None:
    """Answers until it is killed; prints a line once it does."""
    os.environ["RAY_AUTH_TOKEN"] = os.environ[TOKEN]
    with Ensemble.from_config(ensemble_config([Path(folder) for folder in folders], address, "fail")) as ensemble:
        while True:
            for chunk in ensemble.stream(PROMPTS[0], max_tokens=TOKENS):
                print(chunk.text, flush=True)


def kill_program(number: int, address: str, folder: Path) -> str:
    """Kills a program, while it loads its members or while it answers; returns what is wrong, or an empty text."""
    folders = faulty_models(folder)[0]
    paths = [str(each.path) for each in folders]
    command = [sys.executable, __file__, "--program", address, *paths]
    environment = {**os.environ, TOKEN: os.environ["RAY_AUTH_TOKEN"]}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        if number % 2:
            program.stdout.readline()
        time.sleep(random.Random(f"program {number}").uniform(0, 4))
        ended = program.poll()
        program.kill()
    left = wait_gone([pid for each in folders for pid in each.pids()])
    return f"it ended by itself: {ended}" if ended is not None else f"left behind: {left}" if left else ""


def kill_programs(count: int, address: str, folder: Path) -> list[str]:
    """Returns what is wrong after each of some programs was killed; empty texts where nothing is."""
    return [kill_program(number, address, folder / f"program{number}") for number in range(count)]


def report(outcomes: Sequence[Outcome]) -> str:
    """A table by kind of incident, and everything that is wrong."""
    columns = ("whole", "dropped", "rejoined", "error")
    lines = [
        "| incident | happened | answers | " + " | ".join(columns) + " | wrong | slowest (s) | recovery (s) |",
        "|---" * (len(columns) + 6) + "|",
    ]
    for kind in dict.fromkeys(each.incident.kind for each in outcomes):
        own = [each for each in outcomes if each.incident.kind == kind and each.happened]
        results = Counter(result for each in own for result in each.results)
        wrong = sum(len(each.wrong) for each in own)
        cells = [kind, len(own), results.total(), *(results[column] for column in columns), wrong]
        times = [max((each.seconds for each in own), default=0.0), max((each.recovery for each in own), default=0.0)]
        lines.append("| " + " | ".join([*map(str, cells), *(f"{each:.1f}" for each in times)]) + " |")
    lines += [f"{each.incident}: {each.wrong}" for each in outcomes if each.wrong]
    return "\n".join(lines)


def leftovers(token: str) -> list[str]:
    """Returns the command lines of processes, besides this one, that have a cluster's token in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid() and running(int(folder.name)):
            with suppress(OSError):
                if token.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
    return found


def main() -> None:
    """Lets everything go wrong and prints a report; the exit status is 1 if any answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="how much of the counts")
    parser.add_argument("--kinds", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--program", nargs="+", metavar="ADDRESS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        return run_program(args.program[0], args.program[1:])
    halves = {kind: max(1, round(args.share * COUNTS[kind] / len(POLICIES))) for kind in args.kinds}
    outcomes, programs = [], []
    with tempfile.TemporaryDirectory() as folder, started_nodes() as nodes:
        for policy in POLICIES if set(halves) & set(FAULTS) else ():
            outcomes += soak(policy, halves, nodes.address, Path(folder, policy))
        if "program killed" in halves:
            programs = kill_programs(len(POLICIES) * halves["program killed"], nodes.address, Path(folder))
    left = leftovers(os.environ["RAY_AUTH_TOKEN"])
    print(report(outcomes))
    print(f"programs killed: {len(programs)}; wrong: {[each for each in programs if each]}")
    print(f"processes left: {left}")
    sys.exit(bool(left or any(programs) or any(each.wrong for each in outcomes)))


if __name__ == "__main__":
    main()
