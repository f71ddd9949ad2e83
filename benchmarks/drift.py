"""Drift: what goes wrong after the labels, the topics or the agreement change, and how often nothing was wrong."""

from __future__ import annotations

import numpy as np

from benchmarks.banking import recorded_calls
from benchmarks.figures import Run
from pilotfish.bounds import binomial_upper
from pilotfish.takeover import Target, Watch, certify
from pilotfish.takeover.replay import Replayed, replay
from pilotfish.traffic.calls import Call, completion_body
from pilotfish.traffic.tasks import normalise
from pilotfish.training.closed_set import ClosedSetStudent

NEW_TOPICS = 8


def main(run: Run) -> None:
    """Print all figures of the benchmark."""
    seeds = range(1 if run.quick else 5)
    n = 6000 if run.quick else 10_000
    if run.wants("permutation"):
        permutation(run, seeds, n)
    if run.wants("topic"):
        new_topic(run, seeds, n)
    if run.wants("detection"):
        detection(run)
    if run.wants("alarms"):
        false_alarms(run)


def permutation(run: Run, seeds: range, n: int) -> None:
    """Permute all labels of the large model in mid-stream."""
    wrong, recovered = [], []
    for seed in seeds:
        calls = recorded_calls(run, seed, n=n)
        half = n // 2
        labels = sorted({normalise(call.answer) for call in calls})
        shuffled = np.random.default_rng(seed).permutation(len(labels))
        turned = {a: labels[b] for a, b in zip(labels, np.roll(shuffled, 1)[np.argsort(shuffled)], strict=True)}
        stream = calls[:half] + [_said(call, turned[normalise(call.answer)]) for call in calls[half:]]
        made = replay(stream, ClosedSetStudent, seed=seed)
        wrong.append(_wrong_until_handed_back(made, half))
        recovered.append(_recovered(made, half, n))
    run.figure(
        "wrong_after_permutation",
        float(np.median(wrong)),
        unit="answers",
        better="lower",
        n=n,
        seeds=len(seeds),
        low=min(wrong),
        high=max(wrong),
        peer="ThinkLess 0.5.0",
        peer_value=290,
        peer_source="published",
    )
    run.figure(
        "calls_to_recover",
        float(np.median(recovered)),
        unit="calls",
        better="lower",
        n=n,
        seeds=len(seeds),
        low=min(recovered),
        high=max(recovered),
    )


def new_topic(run: Run, seeds: range, n: int) -> None:
    """Let topics come in that no call was about before, as every second call."""
    wrong = []
    for seed in seeds:
        calls = recorded_calls(run, seed)
        rng = np.random.default_rng(seed)
        labels = sorted({normalise(call.answer) for call in calls})
        new = set(rng.choice([x for x in labels if len(x) < 40], NEW_TOPICS, replace=False))
        old = [call for call in calls if normalise(call.answer) not in new]
        fresh = [call for call in calls if normalise(call.answer) in new][:800]
        half = min(n // 2, len(old) - len(fresh))
        mixed = [call for pair in zip(old[half:], fresh, strict=False) for call in pair]
        stream = old[:half] + mixed
        made = replay(stream, ClosedSetStudent, seed=seed)
        is_new = [normalise(call.answer) in new for call in stream]
        end = _handed_back(made, half)
        wrong.append(sum(made.local[i] and not made.agreed[i] and is_new[i] for i in range(half, end)))
    run.figure(
        "wrong_after_new_topic",
        float(np.median(wrong)),
        unit="answers",
        better="lower",
        n=n,
        seeds=len(seeds),
        low=min(wrong),
        high=max(wrong),
    )


def detection(run: Run) -> None:
    """Count the audited calls until a drop of ten points in the agreement of local answers is noticed."""
    needed = []
    for seed in range(40 if run.quick else 200):
        rng = np.random.default_rng(seed)
        watch, rates = _watched(rng)
        for _ in range(300):
            watch.audited(bool(rng.random() < rates["audit"]))
        count = 0
        while not watch.breach and count < 5000:
            watch.audited(bool(rng.random() < rates["audit"] + 0.10))
            count += 1
        needed.append(count)
    run.figure(
        "audits_to_detect_10pt",
        float(np.median(needed)),
        unit="audits",
        better="lower",
        n=len(needed),
        seeds=len(needed),
        low=float(np.quantile(needed, 0.05)),
        high=float(np.quantile(needed, 0.95)),
    )


def false_alarms(run: Run) -> None:
    """Count runs of 100,000 calls of unchanged traffic in which the watch hands the task back."""
    n_runs, n_calls = (10, 20_000) if run.quick else (200, 100_000)
    alarms = []
    for seed in range(n_runs):
        rng = np.random.default_rng(1000 + seed)
        watch, rates = _watched(rng)
        local = rng.random(n_calls) < rates["local"]
        events = {
            "audit": rng.random(int((local & (rng.random(n_calls) < watch.audit_share)).sum())) < rates["audit"],
            "escalated": rng.random(int((~local).sum())) < rates["escalated"],
            "labels": rng.random(int((~local).sum())) < rates["labels"],
            "inputs": rng.random(n_calls) < rates["inputs"],
        }
        alarms.append(any(watch.tests[name].extend(x.tolist()) for name, x in events.items()))
    run.figure("false_alarm_rate", float(np.mean(alarms)), unit="share", better="lower", n=n_runs, seeds=n_runs)


def _watched(rng: np.random.Generator, n: int = 2500) -> tuple[Watch, dict[str, float]]:
    """A watch certified on simulated calls, and the true rates of its four events."""
    confidence = rng.beta(5, 1, size=n)
    made = certify(confidence, rng.random(n) > confidence, Target("system", 0.97))
    t = made.threshold
    local = 1 - t**5
    rates = {
        "local": local,
        "audit": (local - 5 / 6 * (1 - t**6)) / local,
        "escalated": (t**5 - 5 / 6 * t**6) / t**5,
        "labels": 0.002,
        "inputs": 0.03,
    }
    bounds = {name: float(binomial_upper(rng.binomial(n, rates[name]), n, 0.001)) for name in ("labels", "inputs")}
    watch = Watch.for_certificate(made, unknown_labels_upper=bounds["labels"], unfamiliar_upper=bounds["inputs"])
    return watch, rates


def _said(call: Call, answer: str) -> Call:
    return call.replace(reply=completion_body(answer, call.model))


def _handed_back(made: Replayed, start: int) -> int:
    return next((at for at, kind, _ in made.events if kind == "rolled_back" and at > start), len(made.local))


def _wrong_until_handed_back(made: Replayed, start: int) -> int:
    end = _handed_back(made, start)
    return sum(made.local[i] and not made.agreed[i] for i in range(start, end))


def _recovered(made: Replayed, start: int, n: int) -> int:
    end = _handed_back(made, start)
    first = next((i for i in range(end, n) if made.local[i]), n)
    return first - start
