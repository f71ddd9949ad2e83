"""The command that lists every named method."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["methods"]


def methods(
    group: Annotated[str, typer.Argument(help="only this group, such as cascades")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per method")] = False,
) -> None:
    """List every method with its paper, what it needs, and a command that runs it."""
    import json

    from rich.table import Table

    from pilotfish.cli.output import console
    from pilotfish.errors import InputError
    from pilotfish.methods import cards

    found = cards(group or None)
    if not found:
        known = sorted({card.group for card in cards()})
        raise InputError(f"There is no group {group!r}: there are {', '.join(known)}.")
    if as_json:
        for card in found:
            plain = {k: getattr(card, k) for k in ("slug", "group", "paper", "needs", "command", "summary")}
            typer.echo(json.dumps(plain))
        return
    table = Table("method", "what it does", "paper", "needs", "run it", box=None, pad_edge=False, header_style="bold")
    for card in found:
        table.add_row(card.slug, card.summary, card.paper, card.needs, card.command)
    console.print(table)
