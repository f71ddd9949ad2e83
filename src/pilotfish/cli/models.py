"""Commands on the catalog of models: list, pull and path."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(name="models", help="Small models by name: what there is, and fetching it.", no_args_is_help=True)

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="names, as 'pilotfish models list' shows them")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a name, as 'pilotfish models list' shows it")]


@app.command("list")
def list_models() -> None:
    """Show the catalog: what each model is, its size, its licence, and whether it is on this machine."""
    from rich.table import Table

    from pilotfish.cli.output import console
    from pilotfish.models import catalog

    wide = console.width >= 120
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("kind")
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("here", no_wrap=True)
    if wide:
        table.add_column("about")
    for entry in catalog.entries():
        here = "yes" if catalog.is_pulled(entry.name) else "no"
        row = [entry.name, entry.kind, f"{entry.size / 1e6:,.0f}", entry.licence, here]
        table.add_row(*row, *([entry.about] if wide else []))
    console.print(table)


@app.command()
def pull(names: Names) -> None:
    """Fetch models, verified and resumable; what is already here and whole is kept."""
    from pilotfish.models import catalog

    found = [catalog.entry(name) for name in names]
    for entry in found:
        if not catalog.is_pulled(entry.name):
            sources = ", then ".join(dict.fromkeys(str(source) for f in entry.files for source in f.sources))
            print(f"{entry.name}: {entry.size / 1e6:,.0f} MB, licence {entry.licence}; {sources}", file=sys.stderr)
        print(catalog.pull(entry.name))


@app.command()
def path(name: Name) -> None:
    """Print where a model is on this machine; it is fetched when it is not there yet."""
    from pilotfish.models import catalog

    print(catalog.path(name))
