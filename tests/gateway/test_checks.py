"""Online checks: scored apart from the call, into the log and the counters, and never in its way."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import orjson
import pytest

from pilotfish.errors import InputError, ModelError
from pilotfish.gateway.checks import MAX_WAITING, TASK, Checks, make_checks
from pilotfish.gateway.config import ChecksConfig
from pilotfish.gateway.metrics import Metrics
from pilotfish.methods.metrics import make_metrics
from pilotfish.models.fake import FakeModel
from pilotfish.models.reading import Reading
from pilotfish.scorers.calibration import PlattCalibration
from pilotfish.scorers.confidence import save_calibrators
from pilotfish.traffic import Call, TrafficLog
from tests.conformance.test_metrics import NAMES
from tests.gateway.rig import answer, wait_for, whole
from tests.toy_encoder import write_toy_encoder


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


def test_every_metric_of_answers_runs_as_a_check(log, tmp_path):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    encoder = write_toy_encoder(tmp_path / "encoder")
    parts = {"encoder": encoder, "judge": FakeModel("4"), "reader": Reads()}
    scorers = make_metrics([*NAMES, "bartscore", "text_detection"], parts)
    checks = Checks(scorers, 1.0, log, Metrics())
    checks.written([Call.of("Where is it? It is in Peru.", "It is in Peru, and 2 + 2 = 5.")])
    checks.close()
    [event] = log.events(TASK)
    scores = event.detail["scores"]
    assert scores.keys() == scorers.keys()
    assert {name for name, value in scores.items() if value is not None} == {
        "perplexity", "llm_judge", "self_contradiction_numbers", "text_detection"
    }  # fmt: skip
    assert scores["self_contradiction_numbers"] == 0.0


def test_a_check_says_how_sure_it_is(log, tmp_path):
    line = PlattCalibration().fit(np.linspace(0, 1, 40), np.repeat([0.0, 1.0], 20))
    save_calibrators(tmp_path / "sure.npz", {"self_contradiction_numbers": line})
    config = {"metrics": ["self_contradiction_numbers"], "share": 1.0, "confidence": tmp_path / "sure.npz"}
    checks = make_checks(ChecksConfig(**config), log, Metrics())
    checks.written([Call.of("2 + 2?", "2 + 2 = 5"), Call.of("Hi", "Hello")])
    checks.close()
    sure, unknown = (event.detail["scores"]["self_contradiction_numbers"] for event in log.events(TASK))
    assert sure == pytest.approx(float(line.predict(np.array([0.0]))[0]))
    assert unknown is None
    with pytest.raises(InputError, match="no calibration of 'perplexity'"):
        make_checks(ChecksConfig(**config | {"metrics": ["perplexity"]}), log, Metrics())


def test_a_check_takes_its_judge_from_the_configuration(log):
    made = make_checks(ChecksConfig(metrics=["llm_judge"], judge="small"), log, Metrics())
    assert made.scorers["llm_judge"].model.name == "smollm2-135m-instruct"
    made.close()
    with pytest.raises(InputError, match="needs --judge"):
        make_checks(ChecksConfig(metrics=["llm_judge"]), log, Metrics())


def test_a_check_without_its_model_says_where_to_name_it(log):
    with pytest.raises(InputError, match="or 'judge' under"):
        make_checks(ChecksConfig(metrics=["llm_judge"]), log, Metrics())


def test_further_choices_of_a_call_are_its_samples(log):
    checks = Checks(make_metrics(["selfcheck", "semantic_entropy"]), 1.0, log, Metrics())
    for texts in (("It is 4.", "It is 4.", "4"), ("It is 4.", "It is 5.", "9"), ("It is 4.",)):
        choices = [{"message": {"content": text}} for text in texts]
        call = replace(Call.of("2 + 2?", texts[0]), reply=orjson.dumps({"choices": choices}))
        checks.written([call])
    checks.close()
    alike, apart, alone = (event.detail["scores"] for event in log.events(TASK))
    assert alike["semantic_entropy"] == 0.0 > apart["semantic_entropy"]
    assert alike["selfcheck"] > apart["selfcheck"]
    assert alone == {"selfcheck": None, "semantic_entropy": None}


class Reads:
    """Finds every word as likely as the others."""

    def read(self, texts, prefixes=None):
        return [Reading(*(np.full(len(t.split()), v) for v in (-1.0, 2.0, -1.5, 0.5))) for t in texts]


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


def test_a_check_that_breaks_in_an_unknown_way_is_counted_and_leaves_the_others(log, caplog):
    caplog.set_level(logging.CRITICAL, logger="pilotfish.gateway")

    class Broken:
        def score(self, items):
            raise RuntimeError("The size of tensor a must match the size of tensor b.")

    metrics = Metrics()
    checks = Checks({"broken": Broken(), **make_metrics(["semantic_entropy"])}, 1.0, log, metrics)
    checks.written([Call.of("Q", "ok")])
    checks.close()
    [event] = log.events(TASK)
    assert event.detail["scores"] == {"semantic_entropy": None}
    assert 'check="broken",outcome="failed"} 1' in metrics.text()


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
