"""``pilotfish demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    large: Annotated[
        str, typer.Option(help="a model of the catalog, or a model at the endpoint OPENAI_BASE_URL names")
    ] = "qwen2.5-coder-0.5b-instruct",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the log, the students and the report")] = Path(
        "demo-out"
    ),
    traffic: Annotated[
        Path | None, typer.Option(help="folder of recorded traffic to replay instead, such as ../shared/data/banking77")
    ] = None,
) -> None:
    """Watch Pilotfish learn a task from a real local model, take it over, and hand it back when it changes."""
    from pilotfish.cli.output import console

    if traffic is None:
        from pilotfish.demo.run import run

        run(large, out, console)
    else:
        from pilotfish.demo.recorded import run as run_recorded

        run_recorded(traffic, out, console)
