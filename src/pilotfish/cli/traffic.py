"""Commands on the traffic log: import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_", "import_"]

Config = Annotated[Path | None, typer.Option("--config", "-c", help="configuration file; ./pilotfish.toml by default")]
Log = Annotated[Path | None, typer.Option("--log", help="traffic log; that of the configuration by default")]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, a JSON list or a CSV table, also as .gz")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="ends in .jsonl or .parquet")]
Kind = Annotated[str | None, typer.Option("--format", help="openai, batch, litellm, langfuse, table or pilotfish")]
Task = Annotated[str | None, typer.Option(help="name of the task the calls belong to; found out unless given")]
Model = Annotated[str, typer.Option(help="model of records that name none")]
System = Annotated[Path | None, typer.Option(help="file with the system message of records that have none")]
Requests = Annotated[Path | None, typer.Option(help="the input file of a batch, beside its output FILE")]
Only = Annotated[str | None, typer.Option("--task", help="only the calls of this task")]


def import_(
    file: Source,
    config: Config = None,
    log: Log = None,
    kind: Kind = None,
    task: Task = None,
    model: Model = "",
    system: System = None,
    requests: Requests = None,
) -> None:
    """Import recorded calls: OpenAI requests and responses, LiteLLM or Langfuse exports, CSV of input and output."""
    from pilotfish.cli.output import bar, console
    from pilotfish.gateway.sources import load_config
    from pilotfish.gateway.takeover import make_takeover
    from pilotfish.traffic import PatternMasker, TrafficLog
    from pilotfish.traffic.imports import import_file

    settings = load_config(config, {"log": {"path": log}} if log is not None else None)
    mask = PatternMasker() if settings.log.mask else None
    with TrafficLog(settings.log.path, settings.log.durability, mask=mask) as opened, bar("Importing") as progress:
        takeover = make_takeover(settings, opened)
        last = next(opened.calls(newest_first=True, limit=1), None)
        report = import_file(
            opened,
            file,
            kind=kind,  # type: ignore[arg-type]
            task=task,
            model=model,
            system=system.read_text(encoding="utf-8").strip() if system is not None else None,
            requests=requests,
            task_of=takeover.task_of,
            progress=progress,
        )
        for call in opened.calls(after=last.seq if last is not None else 0):
            takeover.observe(call)
        takeover.flush()
    console.print(f"{report.n_new:,} calls imported into {settings.log.path}, {report.n_known:,} were there already.")
    if report.n_skipped:
        console.print(f"{report.n_skipped:,} records are no answered calls and were left out.")
    if report.n_bad:
        console.print(f"{report.n_bad:,} records could not be read:")
        for line, why in report.bad:
            console.print(f"  line {line}: {why}", highlight=False)


def export_(file: Target, config: Config = None, log: Log = None, task: Only = None) -> None:
    """Export logged calls to JSON lines or Parquet."""
    from pilotfish.cli.output import bar, console
    from pilotfish.errors import UnknownTaskError
    from pilotfish.gateway.sources import load_config
    from pilotfish.traffic import TrafficLog
    from pilotfish.traffic.exports import export_file

    settings = load_config(config, {"log": {"path": log}} if log is not None else None)
    with TrafficLog(settings.log.path, read_only=True) as opened, bar("Exporting") as progress:
        if task is not None and not opened.count(task=task):
            raise UnknownTaskError(f"task is {task!r}, of which the log has no calls: see 'pilotfish status'.")
        n_written = export_file(opened, file, task=task, progress=progress)
    console.print(f"{n_written:,} calls written to {file}.")
