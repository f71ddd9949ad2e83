"""The gateway's cost: latency added and calls per second, beside the bare endpoint, LiteLLM and TensorZero.

Client, gateway and an endpoint that answers from memory share the same two cores. Everything is measured in turn,
several times over, and the medians are compared. Then the gateway is killed under load, and its log must hold every
call that a client saw answered.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Run
from benchmarks.serving import peers
from benchmarks.serving.load import load
from pilotfish.demo.run import free_port

CONCURRENCY = (1, 16, 64)
N_CORES = 2
GATEWAY = """\
import sys
from pathlib import Path
from pilotfish.gateway import load_config, serve
serve(load_config(Path(sys.argv[1])))
"""
CONFIG = """\
[server]
port = {port}

[upstream]
base_url = "{url}"
api_key = "sk-bench"

[log]
path = "{folder}/{durability}.db"
durability = "{durability}"
"""


@dataclass
class Sample:
    """One measurement."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float
    n_calls: int
    n_failed: int = 0


Samples = dict[tuple[str, bool, int], list[Sample]]


def main(run: Run) -> None:
    """Measure and print."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:N_CORES])
    with tempfile.TemporaryDirectory(prefix="pilotfish-bench-") as name:
        folder = Path(name)
        if run.wants("speed"):
            _speed(run, folder)
        if run.wants("durability"):
            _durability(run, folder)


def _speed(run: Run, folder: Path) -> None:
    rounds, seconds = (1, 1.0) if run.quick else (5, 4.0)
    samples: Samples = defaultdict(list)
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(_endpoint())
        url = f"http://127.0.0.1:{endpoint}/v1"
        ports = {"bare": endpoint}
        for durability in ("fast", "durable"):
            ports[durability] = stack.enter_context(_gateway(url, durability, folder))[0]
        litellm = peers.interpreter("litellm")
        if litellm is not None:
            ports["litellm"] = free_port()
            stack.enter_context(_running(peers.litellm_proxy(litellm, url, ports["litellm"], folder), ports["litellm"]))
        tensorzero = peers.interpreter("tensorzero")
        for port in ports.values():
            load(port, 8, 1.0)
        for turn in range(rounds):
            for stream in (False, True):
                for concurrency in CONCURRENCY:
                    for who, port in ports.items():
                        samples[who, stream, concurrency].append(_sample(port, concurrency, seconds, stream))
                    if tensorzero is not None:
                        got = peers.tensorzero(tensorzero, url, concurrency, seconds, stream, folder)
                        samples["tensorzero", stream, concurrency].append(
                            Sample(got["calls_per_s"], got["p50_ms"], got["p99_ms"], int(got["n"]))
                        )
            print(f"round {turn + 1} of {rounds} measured", file=sys.stderr)
    _table(samples)
    _figures(run, samples, rounds)


def _sample(port: int, concurrency: int, seconds: float, stream: bool) -> Sample:
    got = load(port, concurrency, seconds, stream=stream)
    return Sample(got.calls_per_s, got.ms(0.5), got.ms(0.99), len(got.latencies), got.n_failed)


def _table(samples: Samples) -> None:
    print(f"{'':12}{'':6}{'at once':>8}{'calls/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}")
    for (who, stream, concurrency), rows in samples.items():
        print(
            f"{who:12}{'sse' if stream else 'json':6}{concurrency:8}{_median(rows, 'calls_per_s'):10.0f}"
            f"{_median(rows, 'p50_ms'):9.3f}{_median(rows, 'p99_ms'):9.3f}{sum(row.n_failed for row in rows):8}"
        )


def _figures(run: Run, samples: Samples, rounds: int) -> None:
    def added(figure: str, who: str, concurrency: int, quantity: str) -> None:
        bare, ours = samples["bare", False, concurrency], samples[who, False, concurrency]
        deltas = [getattr(a, quantity) - getattr(b, quantity) for a, b in zip(ours, bare, strict=True)]
        peer = {}
        if theirs := samples.get(("litellm", False, concurrency)):
            value = statistics.median(
                getattr(a, quantity) - getattr(b, quantity) for a, b in zip(theirs, bare, strict=True)
            )
            peer = {"peer": peers.version("litellm"), "peer_value": value, "peer_source": "measured"}
        run.figure(
            figure,
            statistics.median(deltas),
            unit="ms",
            better="lower",
            n=sum(row.n_calls for row in ours),
            seeds=rounds,
            low=min(deltas),
            high=max(deltas),
            **peer,
        )

    def ratio(figure: str, who: str, stream: bool) -> None:
        found = {c: samples[who, stream, c] for c in CONCURRENCY if (who, stream, c) in samples}
        if not found:
            print(f"{figure}: {who} could not be installed", file=sys.stderr)
            return
        ratios = {
            c: [a.calls_per_s / b.calls_per_s for a, b in zip(samples["fast", stream, c], rows, strict=True)]
            for c, rows in found.items()
        }
        run.figure(
            figure,
            statistics.median(ratios[16]),
            unit="ratio",
            better="higher",
            n=sum(row.n_calls for row in samples["fast", stream, 16]),
            seeds=rounds,
            low=min(ratios[16]),
            high=max(ratios[16]),
            peer=peers.version(who),
            peer_value=1.0,
            peer_source="measured",
            concurrency=16,
            calls_per_s=round(_median(samples["fast", stream, 16], "calls_per_s")),
            peer_calls_per_s=round(_median(found[16], "calls_per_s")),
            at_1=round(statistics.median(ratios[1]), 3),
            at_64=round(statistics.median(ratios[64]), 3),
        )

    added("added_p50_ms_c1", "fast", 1, "p50_ms")
    added("added_p99_ms_c16", "fast", 16, "p99_ms")
    ratio("calls_vs_litellm", "litellm", stream=False)
    ratio("calls_vs_tensorzero", "tensorzero", stream=False)
    added("durable_added_p50_ms_c1", "durable", 1, "p50_ms")
    ratio("sse_calls_vs_litellm", "litellm", stream=True)


def _durability(run: Run, folder: Path) -> None:
    """Kill the gateway under load; whatever a client saw answered must be in the log."""
    from pilotfish.traffic import TrafficLog

    rounds = 3 if run.quick else 20
    chance = random.Random(7)
    acknowledged: set[bytes] = set()
    with _endpoint() as endpoint:
        for turn in range(rounds):
            with _gateway(f"http://127.0.0.1:{endpoint}/v1", "durable", folder) as (port, process):
                timer = threading.Timer(chance.uniform(0.3, 1.0), process.kill)
                timer.start()
                load(port, 16, 5.0, stream=turn % 2 == 1, on_reply=lambda reply: acknowledged.add(_call_id(reply)))
                timer.join()
    with TrafficLog(folder / "durable.db", read_only=True) as log:
        written = {call.id.encode() for call in log.calls()}
    lost = acknowledged - written
    print(f"{len(acknowledged)} calls acknowledged before {rounds} kills, {len(lost)} of them missing", file=sys.stderr)
    run.figure("acknowledged_lost", len(lost), unit="calls", better="lower", n=len(acknowledged), seeds=rounds)


def _call_id(reply: bytes) -> bytes:
    start = reply.index(b"x-pilotfish-call: ") + 18
    return reply[start : reply.index(b"\r\n", start)]


@contextlib.contextmanager
def _endpoint() -> Iterator[int]:
    port = free_port()
    with _running(subprocess.Popen([sys.executable, "-m", "benchmarks.serving.upstream", str(port)]), port):
        yield port


@contextlib.contextmanager
def _gateway(url: str, durability: str, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    config = folder / f"{durability}.toml"
    config.write_text(CONFIG.format(port=port, url=url, folder=folder, durability=durability), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", GATEWAY, config])
    with _running(process, port):
        yield port, process


@contextlib.contextmanager
def _running(process: subprocess.Popen[bytes], port: int) -> Iterator[int]:
    try:
        deadline = time.monotonic() + 180
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} did not start to listen on port {port}")
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _median(rows: list[Sample], quantity: str) -> float:
    return statistics.median(getattr(row, quantity) for row in rows)
