"""Curate documents by a recipe, from files to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["curate"]


def curate(
    inputs: Annotated[list[Path], typer.Argument(help="files or folders: .jsonl, .parquet, .arrow, .txt, .warc")],
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="TOML file of steps")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write, empty or of the same run")],
    workers: Annotated[int, typer.Option("--workers", "-w", help="processes")] = 2,
    report: Annotated[Path | None, typer.Option("--report", help="write the report page here")] = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="write dropped documents with what dropped them")] = False,
    on: Annotated[str, typer.Option("--on", help="ray://HOST:PORT, or ray:// for a local one")] = "",
) -> None:
    """Keep the documents that every step of a recipe keeps; a run that was stopped goes on where it was."""
    from dataclasses import replace

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table as Grid

    from pilotfish.cli.output import console, write_text
    from pilotfish.curation.recipe import Recipe
    from pilotfish.curation.report import to_html
    from pilotfish.curation.run import curate_files

    read = Recipe.load(recipe)
    settings = replace(read.settings, write_dropped=dropped or read.settings.write_dropped)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        tasks: dict[str, int] = {}

        def show(title: str, done: int, n: int) -> None:
            if title not in tasks:
                tasks[title] = bar.add_task(title, total=n)
            bar.update(tasks[title], completed=done, refresh=True)  # type: ignore[arg-type]

        tally = curate_files(
            inputs,
            out,
            read.steps,
            workers=workers,
            settings=settings,
            recipe=read.fingerprint,
            progress=show,
            on=on,
        )
    grid = Grid("step", "rule", box=None, pad_edge=False, header_style="bold")
    grid.add_column("dropped", justify="right")
    for step, rules in tally.dropped.items():
        for rule, (n, _) in sorted(rules.items(), key=lambda item: -item[1][0]):
            grid.add_row(step, rule, f"{n:,}")
    for reason, n in sorted(tally.rejected.items()):
        grid.add_row("rejected", reason, f"{n:,}")
    if grid.row_count:
        console.print(grid)
    share = tally.n_out / tally.n_in if tally.n_in else 0.0
    console.print(f"Kept {tally.n_out:,} of {tally.n_in:,} documents ({share:.1%}) in {out}.")
    if report is not None:
        write_text(report, to_html(tally, "Curation", f"{recipe.name}: {', '.join(step.name for step in read.steps)}"))
        console.print(f"Wrote {report}.")
