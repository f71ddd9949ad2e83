"""Run the demo: gateway, app, learning, take-over, drift, report."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pilotfish.demo.app import Ticket, conversation, tickets
from pilotfish.errors import InputError, ModelError, missing_extra
from pilotfish.gateway.sources import load_config
from pilotfish.gateway.takeover import make_takeover
from pilotfish.models import catalog
from pilotfish.report import report
from pilotfish.takeover.state import TaskState
from pilotfish.traffic.log import TrafficLog
from pilotfish.traffic.tasks import normalise

__all__ = ["free_port", "run"]

_N_LEARN = 240
_N_LIVE = 70
_FEEDBACK_EVERY = 4
_START_SECONDS = 120.0
_LEVEL = 0.90
_N_CHANGED = 6
# Calls are observed a moment after they are answered.
_SETTLE_SECONDS = 0.7


@dataclass
class _Phase:
    """What happened in one phase of the demo."""

    name: str
    n: int = 0
    n_local: int = 0
    n_right: int = 0
    seconds: float = 0.0


def run(large: str, out: Path, console: Console, seed: int = 0) -> Path:
    """Play the demo from first call to report.

    Parameters
    ----------
    large : str
        A model of the catalog; or the name to ask for at the endpoint OPENAI_BASE_URL names.
    out : Path
        Folder for the log, the students and the report; an earlier demo there is removed.
    console : Console
        Where it is told.
    seed : int
        Of the order of the messages.

    Returns
    -------
    Path
        The report page.
    """
    try:
        import openai
    except ImportError:
        raise missing_extra("openai", "demo", "The demo's app") from None
    local = large in {entry.name for entry in catalog.entries()}
    if not local and not os.environ.get("OPENAI_BASE_URL"):
        raise InputError(
            f"large is {large!r}, which the catalog does not have: use a name of 'pilotfish models list', or set "
            "OPENAI_BASE_URL to the endpoint that has it."
        )
    if local:
        console.print(f"The large model is {large}, run here; any endpoint can take its place.")
        catalog.pull(large)
    catalog.pull("all-minilm-l6-v2")
    config = _prepare(large if local else None, out)
    ordinary, fresh = tickets(seed)
    phases = []
    with _gateway(config) as base_url, openai.OpenAI(base_url=base_url, api_key=_key(), max_retries=0) as client:
        app = _App(client, large, console)
        phases.append(app.work("observe: the large model answers", ordinary[:_N_LEARN], feedback=True))
        settings = load_config(config)
        with TrafficLog(settings.log.path) as log:
            takeover = make_takeover(settings, log)
            (task,) = takeover.states()
            console.print(f"\nPilotfish found one task: {task}. Learning it ...")
            learned = takeover.learn(task)
            console.print(learned.certificate.reason, highlight=False)
            if learned.certificate.ok:
                takeover.promote(task)
                console.print(f"Trained in {learned.seconds:.1f} s, now live.\n")
            phases.append(app.work("live: the student answers what it may", ordinary[_N_LEARN : _N_LEARN + _N_LIVE]))
            phases.append(app.work("drift: riders ask about scooters", fresh[:-_N_CHANGED]))
            _tell(console, takeover.states()[task])
            phases.append(app.work("change: the prompt gets a new intent", fresh[-_N_CHANGED:], with_scooters=True))
            _tell(console, takeover.states()[task])
            console.print(_table(phases))
            page = out / "report.html"
            page.write_text(report(log, takeover.states(), takeover.folder), encoding="utf-8")
    console.print(f"The report page: {page}")
    return page


def _tell(console: Console, state: TaskState) -> None:
    phase = state.phase.replace("_", " ")
    console.print(f"The task is {phase}: {state.reason}\n", highlight=False)


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _prepare(local: str | None, out: Path) -> Path:
    """Write the configuration into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    lines = ["[server]", f"port = {free_port()}", "[log]", f'path = "{(out / "traffic.db").as_posix()}"']
    lines += ["[takeover]", f"level = {_LEVEL}", "audit_share = 0.1"]
    if local is not None:
        lines += [f'[models."{local}"]', f'source = "{local}"', "n_parallel = 1"]
        # The endpoint is never asked: every call is for the local model.
        lines += ["[upstream]", 'base_url = "http://127.0.0.1:9/v1"']
    path = out / "pilotfish.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def free_port() -> int:
    """Find a port that is free, among those that the system gives to nobody who does not ask for one by its number."""
    for port in range(10_000 + os.getpid() % 10_000, 30_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("No port from 10000 to 29999 is free: stop a server.")


@contextmanager
def _gateway(config: Path) -> Iterator[str]:
    """Run the gateway as users do, in a process of its own."""
    import urllib.error
    import urllib.request

    port = load_config(config).server.port
    command = [sys.executable, "-m", "pilotfish", "serve", "--config", str(config)]
    with (config.parent / "gateway.log").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            deadline = time.monotonic() + _START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ModelError(f"The gateway did not start: see {config.parent / 'gateway.log'}.") from None
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


class _App:
    """The app: it knows the gateway's address and nothing else of Pilotfish."""

    def __init__(self, client: Any, model: str, console: Console) -> None:
        self.client = client
        self.model = model
        self.console = console

    def work(self, name: str, work: Sequence[Ticket], *, feedback: bool = False, with_scooters: bool = False) -> _Phase:
        """Sort messages; with feedback, people confirm or mend every fourth intent."""
        phase = _Phase(name)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(name, total=len(work))
            for i, ticket in enumerate(work):
                started = time.perf_counter()
                raw = self.client.chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=conversation(ticket.message, with_scooters=with_scooters),
                    temperature=0,
                    max_tokens=8,
                )
                phase.seconds += time.perf_counter() - started
                said = raw.parse().choices[0].message.content or ""
                phase.n += 1
                phase.n_local += raw.headers["x-pilotfish-answered-by"].startswith("student:")
                phase.n_right += normalise(said) == ticket.intent
                if feedback and i % _FEEDBACK_EVERY == 0:
                    body = {"id": raw.headers["x-pilotfish-call"], "label": ticket.intent}
                    self.client.post("/feedback", body=body, cast_to=object)
                progress.advance(bar)
        time.sleep(_SETTLE_SECONDS)
        return phase


def _table(phases: Sequence[_Phase]) -> Table:
    table = Table("phase", box=None, pad_edge=False, header_style="bold")
    for name in ("messages", "answered locally", "right", "mean time"):
        table.add_column(name, justify="right")
    for phase in phases:
        table.add_row(
            phase.name,
            str(phase.n),
            f"{phase.n_local / phase.n:.0%}",
            f"{phase.n_right / phase.n:.0%}",
            f"{1000 * phase.seconds / phase.n:.0f} ms",
        )
    return table
