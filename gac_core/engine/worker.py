"""The one thread that owns all model state of an engine."""

from __future__ import annotations

import logging
import os
import threading
import time

from gac_core.decoding.request import Request
from gac_core.engine.engine import Engine
from gac_core.engine.mailbox import Client, Entry, Event, Mailbox
from gac_core.engine.monitor import Monitor, ensemble_health, in_listener, unusable
from gac_core.errors import (
    EngineClosedError,
    EngineStuckError,
    GaCError,
    MemberLostError,
    MemberTimeoutError,
    RequestError,
    quote,
)
from gac_core.failures import caused
from gac_core.health import EnsembleHealth

logger = logging.getLogger(__name__)

EXIT_GRACE = 1.0
"""Seconds after its beginning for which a step is waited for when Python exits or an ensemble is garbage."""

_CLOSED = "the ensemble was closed before the request was done"


class Worker:
    """Runs an engine in a thread of its own, for one or several ensembles.

    The thread ends when the last ensemble leaves.

    Args:
        engine: The engine; after this only the thread touches it.
        monitor: Receives the engine's events.
    """

    def __init__(self, engine: Engine, monitor: Monitor) -> None:
        self._engine = engine
        self.monitor = monitor
        self._mailbox = Mailbox()
        self._step_began: float | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="gac-engine", daemon=True)
        self._thread.start()

    # ---- for callers, from any thread

    @property
    def forked(self) -> bool:
        """Whether this process was forked after loading: the thread does not exist here, and locks may be held."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises an `EngineClosedError` in a forked process; takes no lock."""
        if self.forked:
            raise EngineClosedError(
                "the ensemble was loaded before this process was forked; load it in each process, not before the "
                "fork, or start processes by 'spawn'"
            )

    @property
    def closed(self) -> bool:
        """Whether no request is accepted any more."""
        return self.forked or self._mailbox.closed

    def join(self, client: Client) -> bool:
        """Adds an ensemble; False if the thread is about to end."""
        return not self.forked and self._mailbox.join(client)

    def submit(self, entry: Entry, wait: bool, timeout: float | None) -> None:
        """Queues a request; errors as in `Session.submit`."""
        self.check_process()
        if in_listener():
            raise RequestError(
                "a listener cannot ask an ensemble, which may be waiting for it; pass the event on to another thread"
            )
        self._mailbox.submit(entry, lambda: self._refuse_if_stuck(entry.client), wait, timeout)

    def abort(self, request_id: str) -> None:
        """Gives up a request; its sink receives nothing more. Unknown ids are no error."""
        if not self.forked:
            self._mailbox.abort(request_id)

    def running_step(self, client: Client) -> tuple[str | None, float] | None:
        """Returns the name of the member whose forward has been running longest, and seconds since the step began.

        None between steps.

        Args:
            client: The ensemble whose names are used; members of other ensembles are named as these name them.
        """
        began = self._step_began
        if began is None:
            return None
        forwards = self._engine.running_forwards()
        member = max(forwards, key=lambda forward: forward[1])[0] if forwards else None
        return None if member is None else self._mailbox.name_of(member, client), time.monotonic() - began

    def _hung_member(self, client: Client) -> tuple[str, float] | None:
        """Returns the name of a member whose forward was given up and has not returned, and seconds since it began."""
        states = [self._engine.member_health(member.member_id) for member in client.members]
        hung = [state for state in states if state is not None and state.state == "hung"]
        return (client.names[hung[0].member_id], hung[0].running_seconds or 0.0) if hung else None

    def stuck_step(self, client: Client) -> tuple[str | None, float] | None:
        """Returns `running_step` if it has been running for longer than an ensemble allows, else None."""
        step = self.running_step(client)
        return step if step is not None and step[1] > client.stuck_after else None

    def health(self, client: Client) -> EnsembleHealth:
        """Returns the state of an ensemble; does not wait for the engine."""
        if self.forked:
            return unusable(client, "the ensemble was loaded before this process was forked")
        if client.closed or self._mailbox.closed:
            return unusable(client, "the ensemble is closed")
        began = self._step_began
        pending = [entry.request for entry in list(self._mailbox.pending.values())]
        return ensemble_health(
            client=client,
            members=[self._engine.member_health(member.member_id) for member in client.members],
            failures=[self.monitor.failures(member.member_id) for member in client.members],
            running=self._engine.running(),
            waiting=[*self._engine.waiting(), *pending],
            step_seconds=None if began is None else time.monotonic() - began,
            stuck=self.stuck_step(client),
        )

    def leave(self, client: Client, timeout: float | None) -> None:
        """Ends an ensemble's requests and gives its members back; see `Session.close`."""
        if self.forked:
            return
        hung = self._hung_member(client)
        last = self._mailbox.leave(client)
        if threading.current_thread() is self._thread or in_listener():
            return
        if last:
            self._thread.join(timeout)
        if client.released.wait(0 if last else timeout):
            return
        step = hung or self.running_step(client)
        if step is None:
            reason = f"the engine did not stop within {timeout} s of closing"
        else:
            place = "the engine" if step[0] is None else f"the forward of member {quote(step[0])}"
            reason = f"{place} has been running for {step[1]:.1f} s and did not return within {timeout} s of closing"
        logger.warning("%s; its memory is freed when it returns", reason)
        self._end_requests(client, f"{_CLOSED}: {reason}")

    def finalize(self, client: Client) -> None:
        """`leave` for ensembles that are garbage, and for Python's exit: a step that hangs is not waited for.

        Where other ensembles use the engine, nothing is waited for.
        """
        if self.forked or not self._mailbox.leave(client):
            return
        # A thread that returns into a Python that shuts down may abort the process.
        step = self.running_step(client)
        self.leave(client, max(0.0, EXIT_GRACE - (0.0 if step is None else step[1])))

    def _refuse_if_stuck(self, client: Client) -> None:
        step = self.stuck_step(client)
        if step is not None and not (client.closed or self._mailbox.closed):
            raise EngineStuckError(*step)

    # ---- the thread's own

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # Whatever ended the thread: callers must not wait for results that will never come.
            left = self._mailbox.stop()
            for client in left:
                self._end_requests(client, _CLOSED)
            try:
                self._engine.close()
            finally:
                for client in left:
                    _release(client)

    def _serve(self) -> None:
        while self._take_over():
            self._step_began = time.monotonic()
            try:
                events = self._engine.step()
            except BaseException as error:
                # A defect of the engine, not of a request: all requests fail, and the thread lives on for new ones.
                # SystemExit and its like would end this thread alone, never the process.
                logger.exception("the engine's step failed")
                self._fail_all(error)
                continue
            finally:
                self._step_began = None
            for request_id, event in events:
                self._deliver(request_id, event)

    def _take_over(self) -> bool:
        """Hands the engine what changed, waiting for something to do; False once it is time to stop."""
        changes = self._mailbox.take(lambda: self._engine.busy)
        if changes is None:
            return False
        for client in changes.joining:
            self._engine.add_ensemble(client.ensemble_id, client.members, client.max_batch_size)
        for entry in changes.added:
            self._engine.add_request(entry.request)
        for request_id in changes.aborted:
            self._drop(request_id)
        for client in changes.leaving:
            self._remove(client)
        return True

    def _remove(self, client: Client) -> None:
        """Ends an ensemble's requests, and removes its members from the engine."""
        try:
            self._engine.remove_ensemble(client.ensemble_id)
        except BaseException:
            logger.exception("an ensemble's members could not be removed from the engine")
        self._end_requests(client, _CLOSED)
        self.monitor.remove(client)
        # Closing a model waits for its forward, which may be another engine's, or hang; other ensembles go on.
        try:
            threading.Thread(target=_release, args=(client,), name="gac-release", daemon=True).start()
        except RuntimeError:
            # Python exits and starts no threads any more.
            _release(client)

    def _deliver(self, request_id: str, event: Event) -> None:
        """Passes an event on; a sink that raises ends its own request."""
        final = isinstance(event, GaCError) or event.output is not None
        entry = self._mailbox.receiver(request_id)
        if final:
            self._mailbox.forget(request_id)
        if entry is None:
            return
        if isinstance(event, GaCError):
            _report(entry.request, event)
        if not _send(entry, event) and not final:
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        """Removes a request from the engine and frees its place."""
        try:
            self._engine.abort_request(request_id)
        except BaseException:
            logger.exception("a request could not be dropped")
        self._mailbox.forget(request_id)

    def _fail_all(self, error: BaseException) -> None:
        """Ends all requests that the engine holds."""
        with self._mailbox.lock:
            held = dict(self._mailbox.held)
            aborted = set(self._mailbox.aborted)
        for request_id, entry in held.items():
            self._drop(request_id)
            if request_id in aborted:
                continue
            failed = caused(GaCError(f"the engine's step failed ({type(error).__name__}: {error})"), error)
            _report(entry.request, failed)
            _send(entry, failed)

    def _end_requests(self, client: Client, reason: str) -> None:
        """Sends an error to all receivers of an ensemble's requests, without touching the engine."""
        for entry in self._mailbox.end(client):
            failed = EngineClosedError(reason)
            _report(entry.request, failed)
            _send(entry, failed)


def _send(entry: Entry, event: Event) -> bool:
    """Calls a sink; False if it raised."""
    try:
        entry.sink(event)
    except BaseException:
        label = entry.request.label
        logger.exception("request %s: its receiver raised", label, extra={"request_id": label, "member": None})
        return False
    return True


def _release(client: Client) -> None:
    try:
        client.release()
    except BaseException:
        logger.exception("an ensemble's models could not be released")
    finally:
        client.released.set()


def _report(request: Request, error: GaCError) -> None:
    """Logs one record for a request that failed, without any text of it; the error receives the request's id."""
    error.request_id = request.label
    member, cause = getattr(error, "member", None), error.__cause__
    # The place where a loss was noticed does not explain it, and every request of the member would log it.
    gone = isinstance(error, (MemberLostError, MemberTimeoutError))
    logger.log(
        logging.WARNING if isinstance(error, EngineClosedError) else logging.ERROR,
        "request %s failed: %s%s%s",
        request.label,
        type(error).__name__,
        "" if member is None else f" of member {member!r}",
        "" if cause is None else f", caused by {type(cause).__name__}",
        extra={
            "event": "request_failed",
            "request_id": request.label,
            "member": member,
            "seconds": time.perf_counter() - request.arrived,
        },
        exc_info=None if gone else cause,
    )
