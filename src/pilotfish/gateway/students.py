"""Local answers: the student asked in a thread of its own, audited in the background, and told of every call."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pilotfish.gateway.metrics import Metrics
from pilotfish.traffic import Answerer, Call, TrafficLog, Verdict
from pilotfish.traffic.calls import answer_text
from pilotfish.types import Request

__all__ = ["Students", "silent"]

MAX_WAITING = 64
MAX_AUDITS = 64
Ask = Callable[[], Awaitable[tuple[dict[str, Any], float]]]

_logger = logging.getLogger("pilotfish.gateway")


class Students:
    """Everything the gateway does with an answerer. Its faults never reach a client.

    Parameters
    ----------
    answerer : Answerer
        Who may answer.
    log : TrafficLog
        Where audits are recorded.
    timeout : float
        Seconds that an answer may take.
    metrics : Metrics
        Counts.
    """

    def __init__(self, answerer: Answerer, log: TrafficLog, timeout: float, metrics: Metrics) -> None:
        self.answerer = answerer
        self.log = log
        self.timeout = timeout
        self.metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pilotfish-student")
        self._n_waiting = 0
        self._observed: queue.SimpleQueue[list[Call] | None] = queue.SimpleQueue()
        self._observer = threading.Thread(target=self._observe, name="pilotfish-observer", daemon=True)
        self._audited: dict[str, asyncio.Future[Call]] = {}
        self._audits: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start to tell of calls."""
        self._observer.start()

    async def close(self, timeout: float) -> None:
        """Let the audits under way end, then tell of the last calls."""
        if self._audits:
            _, late = await asyncio.wait(self._audits, timeout=timeout)
            for audit in late:
                audit.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def finish(self) -> None:
        """Tell of what is left; after the log was written to its end."""
        self._observed.put(None)
        self._observer.join()

    def task_of(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
        """The task of a call; None also when finding it fails."""
        try:
            return self.answerer.task_of(data, headers)
        except Exception:  # noqa: BLE001
            self._failed("Finding a call's task")
            return None

    def active(self, task: str) -> bool:
        """Whether a task's student is to be asked."""
        try:
            return self.answerer.active(task)
        except Exception:  # noqa: BLE001
            self._failed("Asking whether a task has a student")
            return False

    async def answer(self, task: str, request: Request) -> Verdict:
        """Ask the student; whatever goes wrong becomes a verdict that escalates."""
        if self._n_waiting >= MAX_WAITING:
            self.metrics.add("student_failures_total")
            return silent(task, "student is busy")
        self._n_waiting += 1
        future = self._thread.submit(self.answerer.answer, task, request)
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(self._answered)
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), self.timeout)
        except TimeoutError:
            future.cancel()
            self.metrics.add("student_failures_total")
            return silent(task, f"student took over {self.timeout:g} s")
        except Exception as error:  # noqa: BLE001
            self._failed("A student")
            return silent(task, f"student failed: {type(error).__name__}")

    def written(self, calls: Sequence[Call]) -> None:
        """Take over calls that are in the log; called in the log's thread."""
        ready = []
        for call in calls:
            future = self._audited.get(call.id)
            if future is None:
                ready.append(call)
            else:
                future.get_loop().call_soon_threadsafe(_settle, future, call)
        # All at once: each waking of the other thread takes the interpreter from the event loop.
        self._observed.put(ready)

    def audit(self, call_id: str, ask: Ask) -> None:
        """Put a call that was answered locally to the large model too, once it is in the log.

        Parameters
        ----------
        call_id : str
            The call.
        ask : callable
            Puts it to the large model; gives the reply's body and its price.
        """
        if len(self._audits) >= MAX_AUDITS:
            self.metrics.add("audits_total", 'outcome="skipped"')
            return
        self._audited[call_id] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._audit(call_id, ask))
        self._audits.add(task)
        task.add_done_callback(self._audits.discard)

    async def _audit(self, call_id: str, ask: Ask) -> None:
        call = await self._audited[call_id]
        try:
            reply, cost = await ask()
            call = call.replace(audit=answer_text(reply), cost=call.cost + cost)
            self.log.amend(call_id, audit=call.audit, cost=call.cost)
            self.metrics.add("audits_total", 'outcome="agreed"' if call.audit == call.answer else 'outcome="differed"')
        except Exception as error:  # noqa: BLE001
            self.metrics.add("audits_total", 'outcome="failed"')
            _logger.warning("An audit failed: %s", error)
        finally:
            del self._audited[call_id]
            self._observed.put([call])

    def _answered(self, waiting: asyncio.Future[Verdict]) -> None:
        self._n_waiting -= 1
        if not waiting.cancelled():
            # A late failure has no one left who waits for it.
            waiting.exception()

    def _observe(self) -> None:
        while (calls := self._observed.get()) is not None:
            for call in calls:
                try:
                    self.answerer.observe(call)
                except Exception:  # noqa: BLE001
                    self._failed("Observing a call")

    def _failed(self, what: str) -> None:
        self.metrics.add("student_failures_total")
        _logger.exception("%s failed; the call goes on without it.", what)


def silent(task: str, reason: str) -> Verdict:
    """The verdict on a call of which a student in service had nothing to say: no such call is drawn at random."""
    return Verdict(task, confidence=0.0, reason=reason)


def _settle(future: asyncio.Future[Call], call: Call) -> None:
    if not future.done():
        future.set_result(call)
