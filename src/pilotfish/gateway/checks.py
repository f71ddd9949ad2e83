"""Online checks: a share of the answered calls is scored, apart from them, into the log and the counters."""

from __future__ import annotations

import logging
import queue
import threading
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from pilotfish.errors import PilotfishError
from pilotfish.gateway.config import ChecksConfig
from pilotfish.gateway.metrics import Metrics, label
from pilotfish.models.completions import read_choices
from pilotfish.protocols import Scorer
from pilotfish.traffic import Call, TrafficLog
from pilotfish.types import Exchange, Request

__all__ = ["TASK", "Checks", "check_scorers", "make_checks"]

TASK = "checks"
"""The task under which the log keeps the scores, as events of kind ``check``."""
MAX_WAITING = 256
_END_SECONDS = 10.0

_logger = logging.getLogger("pilotfish.gateway")


def make_checks(config: ChecksConfig, log: TrafficLog, metrics: Metrics) -> Checks:
    """Make the checks that the configuration names; nothing is loaded before the first call is scored.

    Raises
    ------
    InputError
        As of :func:`check_scorers`.
    """
    return Checks(check_scorers(config), config.share, log, metrics)


def check_scorers(config: ChecksConfig) -> Mapping[str, Scorer[Exchange]]:
    """Make the scorers that the configuration names.

    Raises
    ------
    InputError
        When a metric is unknown, needs a part that the configuration does not name, or has no calibration in the file
        that it names.
    """
    from pilotfish.methods.metrics import make_metrics, metric_parts

    named = {name: getattr(config, name) or "" for name in ("nli", "reader", "judge")}
    scorers = make_metrics(config.metrics, metric_parts(**named, n_threads=1), config.options)
    if config.confidence is not None:
        from pilotfish.scorers.confidence import confident

        scorers = confident(scorers, config.confidence)
    return scorers


class Checks:
    """Score calls in a thread of their own, after they are in the log; a full queue skips calls and counts them.

    Parameters
    ----------
    scorers : mapping of str to Scorer of Exchange
        By name.
    share : float
        Share of the calls, chosen by their id, so that every worker and every replay chooses the same.
    log : TrafficLog
        Takes an event per scored call.
    metrics : Metrics
        Counts scores and adds them up.
    """

    def __init__(
        self, scorers: Mapping[str, Scorer[Exchange]], share: float, log: TrafficLog, metrics: Metrics
    ) -> None:
        self.scorers = scorers
        self.share = share
        self.log = log
        self.metrics = metrics
        self._waiting: queue.Queue[Call | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="pilotfish-checks", daemon=True)
        self._thread.start()

    def written(self, calls: Sequence[Call]) -> None:
        """Take over calls that are in the log; never waits."""
        for call in calls:
            if call.status != 200 or not call.complete or not call.answer or not self._is_chosen(call.id):
                continue
            try:
                self._waiting.put_nowait(call)
            except queue.Full:
                self.metrics.add("checks_skipped_total")

    def close(self) -> None:
        """Score what waits, for at most ten seconds."""
        try:
            self._waiting.put(None, timeout=_END_SECONDS)
        except queue.Full:
            return
        self._thread.join(_END_SECONDS)

    def _is_chosen(self, call_id: str) -> bool:
        return zlib.crc32(call_id.encode()) / 2**32 < self.share

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                self._check(call)
            except Exception:
                _logger.exception("A call could not be checked; the call itself is not touched.")

    def _check(self, call: Call) -> None:
        request = Request.from_json({"messages": call.messages})
        context = tuple(m.text for m in request.messages if m.role in ("system", "developer", "tool") and m.text)
        reply, *samples = read_choices(call.reply)
        item = Exchange(request, reply, samples=tuple(samples), context=context)
        scores: dict[str, float | None] = {}
        for name, scorer in self.scorers.items():
            try:
                value = float(scorer.score([item])[0])
            except Exception as error:
                # Whatever goes wrong in one model must not take the scores of the others with it.
                unknown = not isinstance(error, PilotfishError)
                _logger.warning("Check %s failed: %s", name, error, exc_info=unknown)
                self.metrics.add("checks_total", f'check="{label(name)}",outcome="failed"')
                continue
            known = bool(np.isfinite(value))
            scores[name] = value if known else None
            self.metrics.add("checks_total", f'check="{label(name)}",outcome="{"scored" if known else "no_score"}"')
            if known:
                self.metrics.add("check_score_sum", f'check="{label(name)}"', value)
        self.log.event(TASK, "check", {"call": call.id, "task": call.task, "scores": scores})
