"""The gateway as a process: kills under load, several workers, one sentence for what is wrong."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import orjson
import pytest

from pilotfish.demo.run import free_port
from pilotfish.traffic import TrafficLog
from tests.gateway.rig import CHAT, STREAM_HEAD, chunk, events, wait_for
from tests.route.conftest import make_table

CODE = """\
import sys
from pilotfish.cli import main
sys.argv = ["pilotfish", "serve", "--config", sys.argv[1]]
main()
"""


# The same with a route that takes a minute to fit.
FITTING = CODE.replace(
    "main()",
    "import time\nimport pilotfish.methods.build as build\n"
    "build.Route.__init__ = lambda *a, **k: sum(range(100_000_000)) and time.sleep(60)\nmain()",
)


ROUTE = "[routes.smart]\npolicy = '{}'\ntable = 't.jsonl'\nbudget = '2usd/1k'\n"
QUIET = {"capture_output": True, "text": True, "check": False}


@contextmanager
def serving(folder, upstream, *, durability="durable", workers=1, code=CODE, more=""):
    port = free_port()
    config = folder / "pilotfish.toml"
    config.write_text(
        f"[server]\nport = {port}\nworkers = {workers}\n"
        f'[upstream]\nbase_url = "{upstream.url}"\napi_key = "sk-secret"\n'
        f'[log]\npath = "{folder}/traffic.db"\ndurability = "{durability}"\n{more}'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                _get(port, "/healthz")
                break
            except OSError:
                time.sleep(0.05)
        yield port, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.out, _ = process.communicate(timeout=30)


def _get(port, path) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


class Clients:
    """Threads that call until told to stop, and remember what was answered in full."""

    def __init__(self, port, n_threads, stream=False) -> None:
        self.acknowledged: list[str] = []
        self.unexpected: list[object] = []
        self._go_on = True
        self._body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream})
        self._threads = [threading.Thread(target=self._run, args=(port,)) for _ in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._go_on = False
        for thread in self._threads:
            thread.join()

    def _run(self, port) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            while self._go_on:
                connection.request("POST", CHAT, self._body)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.unexpected.append(response.status)
                self.acknowledged.append(response.headers["x-pilotfish-call"])
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()


def test_no_acknowledged_call_is_lost_to_a_kill(tmp_path, upstream):
    acknowledged: list[str] = []
    for turn in range(3):
        if turn == 1:
            upstream.replies(STREAM_HEAD + b"".join(map(chunk, events({"content": "x"}))) + b"0\r\n\r\n")
        with serving(tmp_path, upstream) as (port, process):
            clients = Clients(port, 6, stream=turn >= 1)
            time.sleep(0.7)
            process.kill()
            clients.stop()
            assert len(clients.acknowledged) > 10
            acknowledged += clients.acknowledged
    with TrafficLog(tmp_path / "traffic.db", read_only=True) as log:
        written = {call.id for call in log.calls()}
    assert set(acknowledged) <= written


@pytest.mark.parametrize("durability", ["durable", "fast"])
def test_a_stop_finishes_calls_and_writes_the_log(tmp_path, upstream, durability):
    with serving(tmp_path, upstream, durability=durability) as (port, process):
        clients = Clients(port, 4)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        clients.stop()
    assert clients.unexpected == []
    with TrafficLog(tmp_path / "traffic.db", read_only=True) as log:
        assert {call.id for call in log.calls()} >= set(clients.acknowledged)
    assert "Traceback" not in process.out
    assert "sk-secret" not in process.out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_a_route_that_is_being_fitted(tmp_path, upstream, how):
    make_table(40).to_jsonl(tmp_path / "t.jsonl")
    route = f'[routes.smart]\npolicy = "forc"\ntable = "{tmp_path}/t.jsonl"\nbudget = "6usd/1k"\n'
    with serving(tmp_path, upstream, code=FITTING, more=route) as (port, process):
        assert orjson.loads(_get(port, "/healthz"))["routes"] == {"smart": "being fitted"}
        process.send_signal(how)
        process.wait(5)
    assert "Traceback" not in process.out


def test_workers_end_when_their_parent_is_killed(tmp_path, upstream):
    with serving(tmp_path, upstream, workers=2) as (port, process):
        _get(port, "/healthz")
        process.kill()
        process.wait(5)
        with pytest.raises(OSError):
            wait_for(lambda: not _get(port, "/healthz"))


def test_workers_share_the_port_and_the_log(tmp_path, upstream):
    with serving(tmp_path, upstream, workers=2) as (port, process):
        deadline = time.monotonic() + 30
        pids: set[int] = set()
        acknowledged: list[str] = []
        while len(pids) < 2 and time.monotonic() < deadline:
            clients = Clients(port, 8)
            time.sleep(0.3)
            clients.stop()
            assert clients.unexpected == []
            acknowledged += clients.acknowledged
            pids = {call_id.rpartition("-")[2] for call_id in acknowledged}
        assert len(pids) == 2
        with TrafficLog(tmp_path / "traffic.db", read_only=True) as log:
            assert {call.id for call in log.calls()} == set(acknowledged)
        time.sleep(1.5)
        lines = _get(port, "/metrics").decode().splitlines()
        counted = sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("pilotfish_calls_total"))
        assert counted == len(acknowledged)
    assert "sk-secret" not in process.out


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[server]\nport = 'x'\n", "Field 'server.port'"),
        ("[log]\npath = '/proc/none/traffic.db'\n", "cannot be opened for writing"),
        ("[upstream]\nbase_url = 'http://127.0.0.1:8777'\n", "the gateway's own address"),
        ("[checks]\nmetrics = ['nothing']\n", "no method 'nothing'"),
        (f"[server]\nworkers = 2\n{ROUTE.format('nothing')}", "In routes.smart: There is no method 'nothing'"),
        (ROUTE.format("forc").replace("t.jsonl", "none.jsonl"), "In routes.smart: Table none.jsonl is not a file"),
        ("[routes.smart]\nsaved = 'none.npz'\n", "In routes.smart: none.npz is no saved router"),
        ("[server]\nhost = '192.0.2.1'\n", "192.0.2.1 cannot be listened on"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, toml, sentence):
    config = tmp_path / "p.toml"
    config.write_text(toml)
    make_table(8).to_jsonl(tmp_path / "t.jsonl")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PILOTFISH_"))}
    done = subprocess.run([sys.executable, "-c", CODE, str(config)], cwd=tmp_path, **QUIET, env=environ, timeout=60)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_newer_log_is_left_alone(tmp_path, upstream):
    import sqlite3

    with TrafficLog(tmp_path / "traffic.db"):
        pass
    with sqlite3.connect(tmp_path / "traffic.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with serving(tmp_path, upstream) as (_, process):
        assert process.wait(30) == 2
    assert "upgrade pilotfish" in process.out
