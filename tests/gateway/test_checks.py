"""Online checks: scored apart from the call, into the log and the counters, and never in its way."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import orjson
import pytest

from pilotfish.errors import ModelError
from pilotfish.gateway.checks import MAX_WAITING, TASK, Checks
from pilotfish.gateway.metrics import Metrics
from pilotfish.traffic import Call, TrafficLog
from tests.gateway.rig import answer, whole


def wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_served_call_is_checked_off_the_hot_path(start, upstream, tmp_path):
    upstream.replies(whole(answer("2 + 2 = 5 and 1 + 1 = 2")), whole(answer("no numbers")))
    run = start(checks={"metrics": ["self_contradiction_numbers", "mean_log_prob"], "share": 1.0})
    got = run.chat("Add.")
    run.chat("Talk.")

    def events():
        with TrafficLog(tmp_path / "traffic.db") as log:
            return log.events(TASK)

    wait_for(lambda: len(events()) == 2)
    first, second = (event.detail for event in events())
    assert first["call"] == got.header("x-pilotfish-call")
    assert first["scores"] == {"self_contradiction_numbers": 0.5, "mean_log_prob": None}
    assert second["scores"] == {"self_contradiction_numbers": None, "mean_log_prob": None}
    text = run.call("GET", "/metrics").body.decode()
    assert 'pilotfish_checks_total{check="self_contradiction_numbers",outcome="scored"} 1' in text
    assert 'pilotfish_checks_total{check="self_contradiction_numbers",outcome="no_score"} 1' in text
    assert 'pilotfish_check_score_sum{check="self_contradiction_numbers"} 0.5' in text


class Slow:
    """Waits to be let go, or fails."""

    def __init__(self):
        self.go = threading.Event()
        self.n = 0

    def score(self, items):
        self.go.wait(5)
        self.n += 1
        if "fail" in items[0].reply.text:
            raise ModelError("It broke.")
        return np.array([1.0])


@pytest.fixture
def log(tmp_path):
    with TrafficLog(tmp_path / "log.db", "fast") as log:
        yield log


def test_a_slow_check_skips_calls_and_a_broken_one_is_counted(log, caplog):
    caplog.set_level(logging.CRITICAL, logger="pilotfish.gateway")
    slow, metrics = Slow(), Metrics()
    checks = Checks({"slow": slow}, 1.0, log, metrics)
    started = time.monotonic()
    checks.written([Call.of("Q", "fail" if k == 0 else "ok") for k in range(MAX_WAITING + 40)])
    assert time.monotonic() - started < 2
    text = metrics.text()
    assert "pilotfish_checks_skipped_total" in text
    slow.go.set()
    checks.close()
    text = metrics.text()
    assert 'outcome="failed"} 1' in text
    assert slow.n >= MAX_WAITING
    assert len(log.events(TASK)) == slow.n


def test_the_share_is_chosen_by_the_calls_id_and_bad_calls_are_passed_over(log):
    metrics, slow = Metrics(), Slow()
    slow.go.set()
    checks = Checks({"slow": slow}, 0.2, log, metrics)
    calls = [Call.of("Q", "ok") for _ in range(100)]
    checks.written(calls)
    checks.written([Call.of("Q", "ok", status=500), Call.of("Q", "ok", complete=False), Call.of("Q", "")])
    checks.close()
    chosen = {event.detail["call"] for event in log.events(TASK)}
    assert 5 <= len(chosen) <= 40
    assert chosen == {c.id for c in calls if checks._is_chosen(c.id)}
    odd = Checks({"slow": slow}, 1.0, log, metrics)
    odd.written([Call(id="x", created=0.0, request=orjson.dumps({"messages": []}), reply=b"{}")])
    odd.close()
