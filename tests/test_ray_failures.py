"""Actors that die or hang: their requests fail in time, nothing else does, and they are started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import reference
from conftest import EMBEDDED, ROOT, start

from gac_core import Ensemble, Grammar, MemberConfig, MemberError, ModelLoadError
from gac_core.decoding import absence
from gac_core.errors import MemberLostError, MemberTimeoutError
from gac_core.events import Event, ForwardDone
from gac_core.executor.ray.executor import RayExecutor

pytestmark = pytest.mark.ray

PAIR = EMBEDDED[:2]
ASKED = {"max_tokens": 8}


@pytest.fixture(scope="module")
def remote(ray_nodes):
    with ray_nodes.load(PAIR, forward_timeout=3.0) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def wanted(remote):
    return remote.generate("In which town", **ASKED).text


def supervisor(ensemble: Ensemble, place: int):
    return ensemble._members[place].supervisor


def pid_of(ensemble: Ensemble, place: int) -> int:
    return supervisor(ensemble, place).process.facts.pid


def wait_for(condition, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def restarted(ensemble: Ensemble, place: int, generation: int) -> None:
    """Waits until a member's process of a generation is loaded."""
    wait_for(lambda: supervisor(ensemble, place).process.generation == generation)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_an_actor_that_dies_while_idle_is_started_again(remote, wanted):
    document = "Passage: {document}\n", ["What no other test reads: the Ruun Bridge stands in Perrin."]
    read = remote.warm(*document).members["ash"]
    assert read.documents == 1
    assert remote.health().members[0].document_cache_bytes >= read.nbytes
    events: list[Event] = []
    remove = remote.add_listener(events.append)
    before = supervisor(remote, 0).process
    os.kill(before.facts.pid, signal.SIGKILL)
    wait_for(lambda: not remote.health().healthy, 5)
    lost = remote.health().members[0]
    assert (lost.name, lost.state) == ("ash", "restarting")
    assert "is gone" in lost.reason
    restarted(remote, 0, before.generation + 1)
    wait_for(lambda: len(events) == 2)
    assert remote.generate("In which town", **ASKED).text == wanted
    works = remote.health().members[0]
    assert (works.documents, works.document_cache_bytes) == (0, 0)
    remove()
    failed, recovered, *steps = events
    assert (failed.member, failed.error, failed.request_id) == ("ash", "MemberLostError", None)
    assert (recovered.member, recovered.restarted) == ("ash", True)
    assert {each.member for each in steps if isinstance(each, ForwardDone)} == {"ash", "birch"}
    assert (works.state, works.restarts, works.reason) == ("ready", lost.restarts + 1, None)
    assert works.where == supervisor(remote, 0).process.place
    assert works.weight_bytes > 3_000_000
    assert works.cache_bytes > 0
    again = remote.warm(*document).members
    assert (again["ash"], again["birch"].tokens) == (read, 0), "the lost member reads its documents again"


def test_an_actor_that_dies_while_it_is_used_fails_its_requests_alone(ray_nodes, remote, wanted, caplog):
    generation = supervisor(remote, 1).process.generation
    with ray_nodes.load(PAIR[:1], forward_timeout=3.0) as other:
        bystander = start(other, "passages " * 30, max_tokens=400, drafts=False)
        stream = start(remote, "passages " * 30, max_tokens=400, drafts=False)
        next(stream), next(bystander)
        os.kill(pid_of(remote, 1), signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(MemberLostError, match=r"member 'birch' failed: process .* is gone") as error:
            for _ in stream:
                pass
        assert time.monotonic() - began < 5
        assert error.value.member == "birch"
        with pytest.raises(MemberError, match="birch"):
            remote.generate("In which town", **ASKED)
        # One line each, without a traceback.
        failed = [record for record in caplog.records if getattr(record, "event", "") == "request_failed"]
        assert [(record.member, record.exc_info) for record in failed] == [("birch", None)] * 2
        assert sum(1 for _ in bystander) > 100
    restarted(remote, 1, generation + 1)
    assert remote.generate("In which town", **ASKED).text == wanted


@pytest.mark.parametrize(
    ("place", "end"), [(0, signal.SIGKILL), pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_text_goes_on_without_a_lost_member_which_returns_to_it(ray_nodes, plain_members, monkeypatch, place, end):
    monkeypatch.setattr(absence, "REJOIN_PAUSE", 0.0)
    grammar = Grammar.regex("[a-z ]{2000}")
    asked = {"max_tokens": 60, "drafts": False, "grammar": grammar}
    with ray_nodes.load(PAIR, forward_timeout=2.0, on_member_failure="drop") as dropping:
        executor, steps = dropping._session.worker._engine._executor, []
        generation = supervisor(dropping, place).process.generation

        def refresh() -> None:
            # Some steps are made without the member, and then one once it was started again.
            steps.append(supervisor(dropping, place).process.lost is not None)
            if len(steps) == 6:
                os.kill(pid_of(dropping, place), end)
            if sum(steps) == 8:
                restarted(dropping, place, generation + 1)
            RayExecutor.refresh(executor)

        monkeypatch.setattr(executor, "refresh", refresh)
        output = dropping.generate("passages " * 30, **asked)
    (dropped,) = output.stats.dropped
    assert dropped.member == ("ash", "birch")[place]
    assert 0 < dropped.at_token < dropped.rejoined_at < 60
    assert ("is gone" if end == signal.SIGKILL else "has not returned") in dropped.reason
    away = range(dropped.at_token, dropped.rejoined_at)
    tokens, _ = reference.generate(
        plain_members[:2],
        "passages " * 30,
        60,
        grammar=reference.Oracle(grammar),
        absent=lambda count: {place} if count in away else (),
    )
    assert list(output.tokens) == tokens


def test_an_actor_that_hangs_fails_its_requests_in_time(remote, wanted):
    generation, pid = supervisor(remote, 0).process.generation, pid_of(remote, 0)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(MemberTimeoutError, match="member 'ash' failed") as error:
        remote.generate("In which town", **ASKED)
    assert 3 <= time.monotonic() - began < 6
    assert error.value.member == "ash"
    restarted(remote, 0, generation + 1)
    assert remote.generate("In which town", **ASKED).text == wanted
    wait_for(lambda: not is_running(pid))


def test_drivers_that_end_leave_no_process(ray_nodes):
    code = f"""
import sys
import threading
from gac_core import Ensemble
ensemble = Ensemble.load([{PAIR[0]!r}], executor="ray", ray_address={ray_nodes.address!r})
print(ensemble._members[0].facts.pid, flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    exits, killed = (subprocess.Popen([sys.executable, "-c", code], text=True, cwd=ROOT, **pipes) for _ in range(2))
    pids = [int(driver.stdout.readline()) for driver in (exits, killed)]
    assert all(map(is_running, pids))
    killed.kill()
    for driver, status in ((exits, 0), (killed, -signal.SIGKILL)):
        _, errors = driver.communicate(timeout=60)
        assert (driver.returncode, "Traceback" in errors) == (status, False), errors
    wait_for(lambda: not any(map(is_running, pids)), 15)


def test_sigterm_in_the_middle_of_a_text_ends_a_driver_in_order(ray_nodes):
    # Registered first, so that it runs last: Ray's handler aborts a process that takes 3 s to exit.
    code = f"""
import atexit, time
atexit.register(lambda: time.sleep(4) or print("done", flush=True))
from gac_core import Ensemble
ensemble = Ensemble.load([{PAIR[0]!r}], executor="ray", ray_address={ray_nodes.address!r})
for chunk in ensemble.stream("passages " * 30, max_tokens=10**6, temperature=5.0, seed=1):
    print(ensemble._members[0].facts.pid, flush=True)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = subprocess.Popen([sys.executable, "-c", code], text=True, cwd=ROOT, **pipes)
    pid = int(driver.stdout.readline())
    driver.terminate()
    output, errors = driver.communicate(timeout=60)
    assert driver.returncode == signal.SIGTERM, errors
    assert output.endswith("done\n")
    assert "Traceback" not in errors
    wait_for(lambda: not is_running(pid), 15)


def test_a_lost_node_fails_its_member_until_it_is_back(ray_nodes):
    node = ray_nodes.cluster.add_node(num_cpus=1, object_store_memory=2**27, resources={"extra": 1})
    member = MemberConfig(PAIR[1], dtype="float32", name="away", resources={"extra": 1})
    with ray_nodes.load([PAIR[0], member], forward_timeout=5.0) as ensemble:
        wanted = ensemble.generate("In which town", **ASKED).text
        ray_nodes.cluster.remove_node(node)
        wait_for(lambda: supervisor(ensemble, 1).process.lost is not None)
        with pytest.raises(MemberLostError, match="member 'away' failed"):
            ensemble.generate("In which town", **ASKED)
        ray_nodes.cluster.add_node(num_cpus=1, object_store_memory=2**27, resources={"extra": 1})
        restarted(ensemble, 1, 1)
        assert ensemble.generate("In which town", **ASKED).text == wanted
        pid = pid_of(ensemble, 1)
        assert is_running(pid)
    # The last ensemble of a member ends its process.
    wait_for(lambda: not is_running(pid), 5)


@pytest.mark.slow
def test_a_member_is_not_started_again_from_other_files(ray_nodes, tmp_path):
    folder = tmp_path / "member"
    shutil.copytree(PAIR[0], folder)
    with ray_nodes.load([str(folder)]) as ensemble:
        wanted = ensemble.generate("In which town", **ASKED).text
        shutil.copytree(PAIR[1], folder, dirs_exist_ok=True)
        os.kill(pid_of(ensemble, 0), signal.SIGKILL)
        wait_for(lambda: ensemble.health().members[0].state == "lost")
        assert "its files on node" in ensemble.health().members[0].reason
        with pytest.raises(MemberLostError, match="member 'member' failed"):
            ensemble.generate("In which town", **ASKED)
        shutil.copytree(PAIR[0], folder, dirs_exist_ok=True)
        wait_for(lambda: ensemble.health().healthy, 60)
        assert ensemble.generate("In which town", **ASKED).text == wanted


def test_a_member_without_a_place_is_named(ray_nodes, monkeypatch):
    monkeypatch.setattr("gac_core.executor.ray.placement.PLACEMENT_SECONDS", 0.1)
    members = [MemberConfig(PAIR[0], resources={"left": 1}), MemberConfig(PAIR[1], num_cpus=3)]
    with pytest.raises(ModelLoadError, match=r"'birch': the Ray cluster has no place for it: it needs CPU 3 .*left 8"):
        ray_nodes.load(members)


def test_a_model_that_cannot_be_loaded_names_member_and_node(ray_nodes, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(PAIR[0]) / name).read_bytes())
    with pytest.raises(ModelLoadError, match=r"member 'bare'.* on node .* the folder has no weights"):
        ray_nodes.load([MemberConfig(str(tmp_path), name="bare")])


def test_a_member_that_is_closed_while_it_is_started_again_leaves_no_process(ray_nodes, monkeypatch):
    one, other = (MemberConfig(model, dtype="float32", resources={"left": 1}) for model in PAIR)
    closing = ray_nodes.load([one, other], cache_gib=0.5)
    # The place of both is kept for this one.
    with ray_nodes.load([other], cache_gib=0.5) as left:
        own = supervisor(closing, 0)
        assert supervisor(left, 0) is supervisor(closing, 1)
        start_one, started = own._start, []

        def start():
            started.append(start_one())
            closer = threading.Thread(target=closing.close)
            closer.start()
            assert own._closed.wait(10)
            # It has looked for processes to end.
            time.sleep(0.2)
            return started[0]

        monkeypatch.setattr(own, "_start", start)
        os.kill(pid_of(closing, 0), signal.SIGKILL)
        wait_for(lambda: started)
        wait_for(lambda: not is_running(started[0].process.facts.pid), 15)
        assert left.generate("In which town", **ASKED).text
