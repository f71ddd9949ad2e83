"""Choose documents like a target from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pilotfish.curation.choose import Pick
    from pilotfish.curation.documents import Document
    from pilotfish.protocols import FloatArray, IntArray

__all__ = ["select"]

_METHODS = (
    "importance_resampling", "representative_selection", "lima", "mods", "d4", "less", "data_whisperer", "herding",
    "random",
)  # fmt: skip


def select(
    inputs: Annotated[list[Path], typer.Argument(help="files or folders of documents")],
    like: Annotated[list[Path], typer.Option("--like", "-l", help="files of documents like what is wanted")],
    n: Annotated[int, typer.Option("--n", "-n", help="documents to choose", min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write, empty")],
    method: Annotated[str, typer.Option("--method", "-m", help=", ".join(_METHODS))] = "importance_resampling",
    model: Annotated[
        str, typer.Option("--model", help="name or folder of a causal model, for less and data_whisperer")
    ] = "",
    field: Annotated[str, typer.Option("--field", help="name of the text field")] = "text",
    answer: Annotated[str, typer.Option("--answer", help="name of the answer field, for a language model")] = "answer",
    seed: Annotated[int, typer.Option("--seed", help="seed of what is random")] = 0,
) -> None:
    """Choose documents like a target; the report sets what was chosen beside as many at random and all."""
    from pilotfish.cli.output import console
    from pilotfish.curation.choose import choose_files, resample_files
    from pilotfish.errors import InputError

    if method not in _METHODS:
        raise InputError(f"--method is {method!r}: use one of {', '.join(_METHODS)}.")
    if method in ("less", "data_whisperer") and not model:
        raise InputError(
            f"--method {method} needs --model: give the name or the folder of a small causal language model."
        )
    if method == "importance_resampling":
        made = resample_files(inputs, like, out, n, field=field, seed=seed)
    else:
        made = choose_files(inputs, like, out, _pick(method, n, model, answer, seed), field=field, seed=seed)
    console.print(f"Chose {made.n_out:,} of {made.n_in:,} documents into {out}.")
    said = ", ".join(f"{name} {value:.3f}" for name, value in made.likeness.items())
    console.print(f"Mean log-ratio to the target, nats per word, mark and pair: {said}.")


def _pick(method: str, n: int, model: str, answer: str, seed: int) -> Pick:
    import numpy as np

    from pilotfish.curation.importance import ImportanceWeight
    from pilotfish.curation.selection import herded
    from pilotfish.methods import finetuning_data, pretraining_data
    from pilotfish.models.embedder import StaticEmbedder

    def texts(documents: Sequence[Document]) -> list[str]:
        return [d.text for d in documents]

    def examples(documents: Sequence[Document]) -> list[tuple[str, str]]:
        return [(d.text, str(d.fields.get(answer, ""))) for d in documents]

    def quality(pool: Sequence[Document], target: Sequence[Document]) -> FloatArray:
        """Likeness to the target per word: the stand-in for a reward model where none is given."""
        scores = ImportanceWeight().fit(texts(target), texts(pool)).score(texts(pool))
        return np.asarray(scores / np.array([max(len(d.text.split()), 1) for d in pool]))

    def pick(pool: Sequence[Document], target: Sequence[Document]) -> IntArray:
        if method == "representative_selection":
            return finetuning_data.representative_selection(texts(pool), texts(target), n)
        if method == "lima":
            return finetuning_data.lima(texts(pool), quality(pool, target), n)
        if method == "mods":
            given = quality(pool, target)
            vectors = StaticEmbedder().embed(texts(pool))

            def tuned(chosen: IntArray) -> FloatArray:
                """How near each document is to one that was tuned on: what is far is not learned yet."""
                return np.asarray((vectors @ vectors[chosen].T).max(axis=1), dtype=np.float64)

            return finetuning_data.mods(texts(pool), given, n, tuned, float(np.median(given)))
        if method == "d4":
            return pretraining_data.d4(StaticEmbedder().embed(texts(pool)).astype(float), n, seed=seed)
        if method == "herding":
            return herded(StaticEmbedder().embed(texts(pool)).astype(float), n, seed=seed)
        if method == "less":
            return finetuning_data.less(model, examples(pool), examples(target), n, seed)
        if method == "data_whisperer":
            return finetuning_data.data_whisperer(model, examples(pool), n, seed)
        return np.random.default_rng(seed).permutation(len(pool))[:n]

    return pick
