"""The end of a process while a forward hangs, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import EMBEDDED, ROOT

# ---- processes


def run_code(code, timeout=120):
    """Runs code in a process of its own; returns its lines."""
    code = f"""
import atexit, faulthandler, os, sys, threading, time
began = []
# Registered first, so that it runs after all that the library does at exit.
atexit.register(lambda: began and print(time.monotonic() - began[0]))
faulthandler.dump_traceback_later({timeout - 10}, exit=True)
from gac_core import Ensemble, EngineClosedError
ensemble = Ensemble.load({EMBEDDED[:2]!r}, dtype="float32")
{textwrap.dedent(code)}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_python_exits_at_once_while_a_forward_hangs():
    lines = run_code(
        """
        entered = threading.Event()
        ensemble._members[0]._runner.forward = lambda rows: entered.set() or threading.Event().wait()
        threading.Thread(target=lambda: ensemble.generate("Who", max_tokens=5), daemon=True).start()
        assert entered.wait(60)
        began.append(time.monotonic())
        """
    )
    assert float(lines[-1]) < 5


def test_an_ensemble_that_is_left_waits_only_for_its_timeout():
    lines = run_code(
        """
        entered = threading.Event()
        ensemble._members[0]._runner.forward = lambda rows: entered.set() or threading.Event().wait()
        threading.Thread(target=lambda: ensemble.generate("Who", max_tokens=5), daemon=True).start()
        assert entered.wait(60)
        start = time.monotonic()
        ensemble.close(0.2)
        print(time.monotonic() - start)
        """
    )
    assert 0.2 <= float(lines[-1]) < 5


def test_python_exits_in_the_middle_of_a_text():
    """A daemon thread that comes back into Python from a forward while it shuts down may end the process."""
    run_code(
        """
        stream = ensemble.stream("passages " * 30, max_tokens=10**6, temperature=5.0, seed=1)
        next(stream)
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_meets_no_lock_of_its_parent():
    lines = run_code(
        """
        import copy, signal
        from gac_core.tokenization import encoder
        stream = ensemble.stream("passages " * 30, max_tokens=10**6, temperature=5.0, seed=1)
        next(stream)
        # As if other threads held them at the moment of the fork.
        compiler = ensemble._input_processor._compiler
        locks = [encoder._LARGE_LOCK, compiler._lock, compiler._building, ensemble._session.worker._mailbox.lock]
        ready, leave = threading.Event(), threading.Event()
        def hold():
            for lock in locks:
                lock.acquire()
            ready.set()
            leave.wait()
            for lock in reversed(locks):
                lock.release()
        holder = threading.Thread(target=hold)
        holder.start()
        ready.wait()
        # The thread of its timer is missing in the child as well.
        faulthandler.cancel_dump_traceback_later()
        faulthandler.register(signal.SIGUSR1)
        child = os.fork()
        if child == 0:
            import asyncio
            told = []
            async def astreamed():
                async for _ in ensemble.astream("x"):
                    pass
            for call in (
                lambda: ensemble.generate("x"), lambda: ensemble.generate("x", timeout=5),
                lambda: next(ensemble.stream("x")), lambda: ensemble.generate_batch(["x"]),
                lambda: asyncio.run(ensemble.agenerate("x")), lambda: asyncio.run(ensemble.agenerate_batch(["x"])),
                lambda: asyncio.run(astreamed()), lambda: ensemble.encode("x"), lambda: ensemble.count_tokens("x"),
                lambda: next(stream),
            ):
                try:
                    call()
                except EngineClosedError as error:
                    told.append(error)
            assert ensemble.closed
            assert copy.deepcopy(ensemble) is ensemble
            ensemble.close()
            stream.close()
            del stream
            print("child", len(told), flush=True)
            sys.exit(0)
        until = time.monotonic() + 20
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        if status[0] == 0:
            os.kill(child, signal.SIGUSR1)
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
        leave.set()
        holder.join()
        print("status", status[1] if status[0] else "hangs", flush=True)
        print(bool(next(stream)))
        """
    )
    assert lines == ["child 10", "status 0", "True"]
