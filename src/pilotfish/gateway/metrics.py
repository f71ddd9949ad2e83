"""Counters of the gateway in Prometheus' text form, summed over its workers."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["Metrics"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
HELP = {
    "calls_total": "Calls by endpoint, who answered and status.",
    "tokens_total": "Tokens by kind and who answered.",
    "cost_usd_total": "Price of the calls in US dollars by who answered.",
    "audits_total": "Local answers put to the large model, by outcome.",
    "checks_total": "Answered calls scored online, by check and outcome.",
    "check_score_sum": "Sum of the scores, by check.",
    "checks_skipped_total": "Chosen calls that were not scored because too many waited.",
    "student_failures_total": "Calls escalated because the student failed or was too slow.",
    "upstream_retries_total": "Calls tried again.",
    "upstream_failures_total": "Calls the upstream did not answer, by kind.",
    "refused_total": "Calls refused before they were sent on, by code.",
    "log_written_total": "Calls written to the log.",
    "log_dropped_total": "Calls that could not be kept.",
    "log_queued": "Calls that wait to be written.",
    "log_failed": "1 while the log cannot be written.",
    "breaker_open": "1 while the upstream is left alone after failures.",
}
GAUGES = frozenset(["log_queued", "log_failed", "breaker_open"])
Labels = tuple[str, ...]


class Metrics:
    """Count what the gateway does.

    Parameters
    ----------
    folder : Path or None
        Where the workers leave their counts for each other; None for a single worker.
    worker : str
        Name of this worker.

    Examples
    --------
    >>> metrics = Metrics()
    >>> metrics.add("refused_total", 'code="invalid_api_key"')
    >>> "pilotfish_refused_total" in metrics.text()
    True
    """

    def __init__(self, folder: Path | None = None, worker: str = "0") -> None:
        self.folder = folder
        self.worker = worker
        self._values: dict[tuple[str, str], float] = defaultdict(float)
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = defaultdict(float)

    def add(self, name: str, labels: str = "", amount: float = 1.0) -> None:
        """Add to a counter; ``labels`` in Prometheus' form."""
        self._values[name, labels] += amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._values[name, ""] = value

    def call(self, endpoint: str, answered_by: str, status: int, seconds: float) -> None:
        """Count one call and its latency."""
        self._values["calls_total", _call_labels(endpoint, answered_by, status)] += 1
        buckets = self._buckets.get(answered_by)
        if buckets is None:
            buckets = self._buckets[answered_by] = [0] * (len(BUCKETS) + 1)
        buckets[bisect_left(BUCKETS, seconds)] += 1
        self._sums[answered_by] += seconds

    def leave(self) -> None:
        """Leave the counts where the other workers find them."""
        if self.folder is None:
            return
        data = {
            "values": [[*key, value] for key, value in self._values.items()],
            "buckets": self._buckets,
            "sums": self._sums,
        }
        temporary = self.folder / f"{self.worker}.tmp"
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(self.folder / f"{self.worker}.json")

    def text(self) -> str:
        """All workers' counts in Prometheus' text form."""
        values: dict[tuple[str, str], float] = defaultdict(float)
        buckets: dict[str, list[int]] = {}
        sums: dict[str, float] = defaultdict(float)
        for part in self._parts():
            for key, value in part._values.items():
                values[key] += value
            for name, counts in part._buckets.items():
                before = buckets.get(name, [0] * len(counts))
                buckets[name] = [a + b for a, b in zip(before, counts, strict=True)]
            for name, total in part._sums.items():
                sums[name] += total
        return "\n".join([*_plain_lines(values), *_histogram_lines(buckets, sums)]) + "\n"

    def _parts(self) -> Iterable[Metrics]:
        yield self
        for path in sorted(self.folder.glob("*.json")) if self.folder else []:
            if path.stem == self.worker:
                continue
            data = json.loads(path.read_text(encoding="utf-8"))
            part = Metrics()
            part._values.update({(name, labels): value for name, labels, value in data["values"]})
            part._buckets, part._sums = data["buckets"], data["sums"]
            yield part


def label(value: str) -> str:
    """Quote a label's value."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _call_labels(endpoint: str, answered_by: str, status: int) -> str:
    key = endpoint, answered_by, status
    labels = _label_cache.get(key)
    if labels is None:
        labels = f'endpoint="{label(endpoint)}",answered_by="{label(answered_by)}",status="{status}"'
        if len(_label_cache) < 4096:
            _label_cache[key] = labels
    return labels


_label_cache: dict[tuple[str, str, int], str] = {}


def _plain_lines(values: Mapping[tuple[str, str], float]) -> Iterable[str]:
    for name, what in HELP.items():
        rows = sorted((labels, value) for (found, labels), value in values.items() if found == name)
        if rows:
            yield f"# HELP pilotfish_{name} {what}"
            yield f"# TYPE pilotfish_{name} {'gauge' if name in GAUGES else 'counter'}"
            for labels, value in rows:
                yield f"pilotfish_{name}{'{' + labels + '}' if labels else ''} {_number(value)}"


def _histogram_lines(buckets: Mapping[str, list[int]], sums: Mapping[str, float]) -> Iterable[str]:
    if not buckets:
        return
    yield "# HELP pilotfish_latency_seconds From the call to the last byte of its reply."
    yield "# TYPE pilotfish_latency_seconds histogram"
    for name, counts in sorted(buckets.items()):
        labels = f'answered_by="{label(name)}"'
        total = 0
        for bound, count in zip((*BUCKETS, math.inf), counts, strict=True):
            total += count
            yield f'pilotfish_latency_seconds_bucket{{{labels},le="{"+Inf" if bound == math.inf else bound}"}} {total}'
        yield f"pilotfish_latency_seconds_sum{{{labels}}} {_number(sums[name])}"
        yield f"pilotfish_latency_seconds_count{{{labels}}} {total}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
