"""Commands on tasks: status, learn, promote, rollback, replay and report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pilotfish.gateway.config import GatewayConfig
    from pilotfish.takeover.certify import Target
    from pilotfish.takeover.service import Takeover

__all__ = ["learn", "promote", "replay", "report", "rollback", "status"]

Config = Annotated[Path | None, typer.Option("--config", "-c", help="configuration file; ./pilotfish.toml by default")]
Log = Annotated[Path | None, typer.Option("--log", help="traffic log; that of the configuration by default")]
_NO_TASK = (
    "No task has been found yet: a task shows after its second call with the same instruction of four words or more, "
    "model alias or header x-pilotfish-task."
)
_NO_PRICE = "Spending is not known of models without a section [prices.NAME] in the configuration."
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="name of the task, as 'pilotfish status' shows it")]


def _config(config: Path | None, log: Path | None, features: str | None = None) -> GatewayConfig:
    from pilotfish.gateway.sources import load_config

    given: dict[str, dict[str, object]] = {"log": {"path": log}, "student": {"features": features}}
    return load_config(config, {name: part for name, part in given.items() if None not in part.values()})


@contextmanager
def _takeover(settings: GatewayConfig) -> Iterator[Takeover]:
    from pilotfish.errors import LogError
    from pilotfish.gateway.takeover import make_takeover
    from pilotfish.traffic.log import TrafficLog

    if not settings.log.path.is_file():
        raise LogError(
            f"There is no traffic log at {settings.log.path}: start 'pilotfish serve', 'pilotfish import' a file, or "
            "give the place with --log."
        )
    with TrafficLog(settings.log.path, settings.log.durability) as opened:
        yield make_takeover(settings, opened)


def status(config: Config = None, log: Log = None) -> None:
    """Show the tasks found, their calls and cost, and what a student answers or could answer."""
    from rich.table import Table
    from rich.text import Text

    from pilotfish.cli.output import console

    settings = _config(config, log)
    with _takeover(settings) as takeover:
        states = takeover.states()
        totals = takeover.log.totals()
    unpriced = False
    table = Table("task", "phase", "answers", box=None, pad_edge=False, header_style="bold")
    for name in ("calls", "local", "spent", "certified", "lost at most"):
        table.add_column(name, justify="right")
    for name, state in sorted(states.items()):
        mine = [t for t in totals if t.task == name]
        n_calls = sum(t.n_calls for t in mine)
        n_local = sum(t.n_calls for t in mine if t.answered_by.startswith("student:"))
        proved = state.certificate if state.certificate is not None and state.certificate.ok else None
        spent = _dollars(sum(t.cost for t in mine), state.task.model, settings)
        unpriced |= not spent
        table.add_row(
            name,
            state.phase.replace("_", " "),
            (state.kind or "unknown").replace("_", " "),
            f"{n_calls:,}",
            f"{n_local / n_calls:.1%}" if n_calls else "",
            spent,
            f"{proved.coverage:.1%}" if proved else "",
            f"{proved.loss_upper:.2%}" if proved else "",
        )
    if not states:
        console.print(_NO_TASK)
        return
    console.print(table)
    if unpriced:
        console.print(_NO_PRICE, highlight=False)
    for name, state in sorted(states.items()):
        if state.reason:
            console.print(Text.assemble((name, "bold"), f": {state.reason}"), highlight=False)


def _dollars(cost: float, model: str, settings: GatewayConfig) -> str:
    """What was spent; empty where nothing says what the model costs. A task that a client named may have several."""
    from pilotfish.page import dollars

    known = model in settings.prices if model else bool(settings.prices)
    return dollars(cost) if cost or known else ""


def _target(
    takeover: Takeover,
    task: str,
    measure: str | None,
    level: float | None,
    confidence: float | None,
    spend: float | None,
) -> Target:
    from dataclasses import replace

    target = takeover.state(task).target
    changes: dict[str, object] = {}
    if measure is not None:
        changes["measure"] = measure
        if measure == "correctness" and level is None:
            changes["level"] = None
    if level is not None:
        changes["level"] = level
    if confidence is not None:
        changes["confidence"] = confidence
    if spend is not None:
        changes["max_spend"] = spend
    return replace(target, **changes)  # type: ignore[arg-type]


def learn(
    task: TaskName,
    config: Config = None,
    log: Log = None,
    measure: Annotated[
        str | None, typer.Option(help="what to keep: 'system' (all replies), 'answers' (local ones) or 'correctness'")
    ] = None,
    level: Annotated[float | None, typer.Option(help="the share to keep, such as 0.97")] = None,
    confidence: Annotated[float | None, typer.Option(help="confidence of the certificate, such as 0.95")] = None,
    max_spend: Annotated[float | None, typer.Option(help="ceiling of the mean spend per call, US dollars")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="'encoder', 'large', 'language', 'static' or 'ngrams'; as configured unless given"),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="bound every answer by itself, too")] = False,
    auto: Annotated[
        bool, typer.Option("--auto", help="wait while it promises little; certified, it answers at once")
    ] = False,
) -> None:
    """Train a student on a task's calls, certify it, and print what it may answer."""
    from pilotfish.cli.output import bar, console

    with _takeover(_config(config, log, features)) as takeover:
        target = _target(takeover, task, measure, level, confidence, max_spend)
        with bar(f"learning {task}") as progress:
            learned = takeover.learn(task, target, by_class=by_class, patient=auto, progress=progress)
        made = learned.certificate
        console.print(made.reason, highlight=False)
        console.print(
            f"Learned from {learned.n_fit:,} calls in {learned.seconds:.1f} s, checked on {learned.n_calibrate:,}.",
            highlight=False,
        )
        for group in made.groups:
            console.print(
                f"  {group.group}: {group.n_local} of {group.n} local, {group.n_wrong} differ, "
                f"at most {group.wrong_upper:.1%}",
                highlight=False,
            )
        state = takeover.state(task)
        if auto and made.ok and state.phase == "shadow":
            takeover.promote(task)
            console.print(f"{task} is live.")
        elif state.certificate is not None and state.certificate != made:
            stays = f"Student {state.version} stays in {'service' if state.phase == 'live' else 'shadow'}"
            console.print(f"{stays}: {state.certificate.reason}", highlight=False)
        elif state.phase == "live":
            console.print(f"{task} is live with student {state.version}.", highlight=False)
        elif state.phase == "shadow":
            console.print(f"It predicts in shadow now. To let it answer: pilotfish promote {task}", highlight=False)


def promote(task: TaskName, config: Config = None, log: Log = None) -> None:
    """Let a task's certified student answer."""
    from pilotfish.cli.output import console

    with _takeover(_config(config, log)) as takeover:
        state = takeover.promote(task)
    console.print(f"{task} is live with student {state.version}: {state.reason}", highlight=False)


def rollback(
    task: TaskName,
    config: Config = None,
    log: Log = None,
    reason: Annotated[str, typer.Option(help="kept in the log")] = "by request",
) -> None:
    """Hand a task back to the large model, at once."""
    from pilotfish.cli.output import console

    with _takeover(_config(config, log)) as takeover:
        served = takeover.active(task)
        takeover.roll_back(task, reason)
    console.print(f"{task} is answered by the large model {'again' if served else 'already'}.", highlight=False)


def replay(
    config: Config = None,
    log: Log = None,
    policy: Annotated[Path | None, typer.Option(help="a configuration whose \\[takeover] section is tried")] = None,
    task: Annotated[str | None, typer.Option(help="only this task")] = None,
) -> None:
    """Show what a takeover would have cost and got right on the logged traffic."""
    from rich.table import Table

    from pilotfish.cli.output import bar, console
    from pilotfish.gateway.sources import load_config
    from pilotfish.gateway.takeover import target_of
    from pilotfish.takeover.replay import replay as run
    from pilotfish.training.closed_set import ClosedSetStudent

    own = _config(config, log)
    tried = load_config(policy) if policy is not None else own
    unpriced = False
    features = (tried if "student" in tried.model_fields_set else own).student.features
    with _takeover(own) as takeover:
        names = [task] if task is not None else sorted(takeover.states())
        if not names:
            console.print(_NO_TASK)
            return
        table = Table("task", box=None, pad_edge=False, header_style="bold")
        for name in ("calls", "local", "agreement", "right", "cost", "large model alone"):
            table.add_column(name, justify="right")
        for name in names:
            model = takeover.state(name).task.model
            n_calls = takeover.log.count(task=name)
            with bar(name) as told:
                made = run(
                    takeover.log.calls(task=name),
                    ClosedSetStudent,
                    settings={"features": features},
                    target=target_of(tried),
                    audit_share=tried.takeover.audit_share,
                    progress=lambda n, told=told, total=n_calls: told(n, total),  # type: ignore[misc]
                )
            gold = [right for right in made.right if right is not None]
            table.add_row(
                name,
                f"{len(made.local):,}",
                f"{made.local_share:.1%}",
                f"{made.agreement:.2%}",
                f"{sum(gold) / len(gold):.1%}" if gold else "",
                _dollars(sum(made.cost), model, own),
                _dollars(sum(made.cost_of_large), model, own),
            )
            unpriced |= not _dollars(sum(made.cost_of_large), model, own)
    console.print(table)
    if unpriced:
        console.print(_NO_PRICE, highlight=False)


def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="the page to write")] = Path("report.html"),
    config: Config = None,
    log: Log = None,
) -> None:
    """Write the report as one self-contained HTML page."""
    from pilotfish.cli.output import console, write_text
    from pilotfish.report import report as make

    with _takeover(_config(config, log)) as takeover:
        write_text(output, make(takeover.log, takeover.states(), takeover.folder))
    console.print(f"Wrote {output}")
