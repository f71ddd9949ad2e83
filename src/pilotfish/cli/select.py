"""Choose documents like a target from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["select"]

_METHODS = "importance_resampling, representative_selection, lima, mods, d4, less, data_whisperer, herding, random"


def select(
    inputs: Annotated[list[Path], typer.Argument(help="files or folders of documents")],
    like: Annotated[list[Path], typer.Option("--like", "-l", help="files of documents like what is wanted")],
    n: Annotated[int, typer.Option("--n", "-n", help="documents to choose", min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write, empty")],
    method: Annotated[str, typer.Option("--method", "-m", help=_METHODS)] = "importance_resampling",
    model: Annotated[
        str, typer.Option("--model", help="name or folder of a causal model, for less and data_whisperer")
    ] = "",
    field: Annotated[str, typer.Option("--field", help="name of the text field")] = "text",
    answer: Annotated[str, typer.Option("--answer", help="name of the answer field, for a language model")] = "answer",
    seed: Annotated[int, typer.Option("--seed", help="seed of what is random", min=0)] = 0,
) -> None:
    """Choose documents like a target; the report sets what was chosen beside as many at random and all."""
    from pilotfish.cli.output import console
    from pilotfish.curation.choose import choose_files, resample_files
    from pilotfish.curation.picks import pick

    if method == "importance_resampling":
        made = resample_files(inputs, like, out, n, field=field, seed=seed)
    else:
        made = choose_files(
            inputs, like, out, pick(method, n, model=model, answer=answer, seed=seed), field=field, seed=seed
        )
    console.print(f"Chose {made.n_out:,} of {made.n_in:,} documents into {out}.")
    if made.n_rejected:
        console.print(
            f"Passed over {made.n_rejected:,} records that have no text in field {field!r} or cannot be read."
        )
    said = ", ".join(f"{name} {value:.3f}" for name, value in made.likeness.items())
    console.print(f"Mean log-ratio to the target, nats per word, mark and pair: {said}.")
