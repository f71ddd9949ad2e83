"""Weigh domains of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["mix"]

_N_ROUNDS = 6
# A tenth of them, and a tenth of the rest, are held out in windows of 50.
_FEWEST_BYTES = 1000
_METHODS = ("doremi", "autoscale", "mixing_agent", "presence", "uniform", "natural")


def mix(
    domains: Annotated[Path, typer.Argument(help="folder with a folder or a file for each domain")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write")] = Path("weights.json"),
    method: Annotated[str, typer.Option("--method", "-m", help=", ".join(_METHODS))] = "doremi",
    steps: Annotated[
        int | None, typer.Option("--steps", help="training steps of a small model; 200, of autoscale 4000", min=4)
    ] = None,
    field: Annotated[str, typer.Option("--field", help="name of the text field")] = "text",
    seed: Annotated[int, typer.Option("--seed", help="seed of what is random", min=0)] = 0,
) -> None:
    """Learn weights of domains with small language models, and compare their held-out loss with two controls."""
    import json

    import numpy as np

    from pilotfish.cli.output import console, write_text
    from pilotfish.curation.mixing import ByteModel, held_back
    from pilotfish.errors import InputError
    from pilotfish.methods import pretraining_data

    if method not in _METHODS:
        raise InputError(f"--method is {method!r}: use one of {', '.join(_METHODS)}.")
    # A scale has power laws only once a model has learned more than how frequent each letter is.
    steps = steps or (4000 if method == "autoscale" else 200)
    texts = _texts(domains, field)
    train = {name: held_back(text)[0] for name, text in texts.items()}
    held = [held_back(text)[1] for text in texts.values()]
    # What a method looks at beside the text it trains on is not what the report is made of.
    seen = {name: held_back(text)[0] for name, text in train.items()}
    looked_at = [held_back(text)[1] for text in train.values()]
    k = len(train)
    mixtures = {"uniform": np.full(k, 1 / k), "natural": np.array([len(text) for text in train.values()], dtype=float)}
    mixtures["natural"] /= mixtures["natural"].sum()
    if method == "doremi":
        mixtures[method] = pretraining_data.doremi(train, steps, seed)
    elif method == "autoscale":
        mixtures[method] = pretraining_data.autoscale(seen, looked_at, steps, seed)
    elif method == "presence":
        mixtures[method] = pretraining_data.presence(train, steps, seed)
    elif method == "mixing_agent":
        each = max(1, steps // _N_ROUNDS)
        policy = pretraining_data.mixing_agent(seen, looked_at, n_rounds=_N_ROUNDS, steps_a_round=each, seed=seed)
        mixtures[method] = ByteModel(train, seed=seed).train_by(policy, looked_at, _N_ROUNDS, each).mean(axis=0)
    report = {}
    for name, mixture in mixtures.items():
        losses = ByteModel(train, seed=seed + 7).train(mixture, steps).held_out(held)
        report[name] = {"mean_loss": round(float(losses.mean()), 4), "worst_loss": round(float(losses.max()), 4)}
        console.print(f"{name}: mean loss {losses.mean():.3f}, worst domain {losses.max():.3f} nats a byte")
    weights = {name: round(float(w), 6) for name, w in zip(train, mixtures[method], strict=True)}
    write_text(out, json.dumps({"method": method, "weights": weights, "held_out": report}, indent=1) + "\n")
    console.print(f"Wrote {out}.")


def _texts(folder: Path, field: str) -> dict[str, str]:
    from pilotfish.curation.endings import DROPPED, stem_of
    from pilotfish.curation.reading import read, shards
    from pilotfish.errors import InputError

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with a folder or a file for each domain.")
    parts: dict[str, list[str]] = {}
    for shard in shards([folder]):
        below = Path(shard.path).relative_to(folder)
        name = below.parts[0] if len(below.parts) > 1 else stem_of(below)
        parts.setdefault(name, []).extend(d.text for documents, _ in read(shard, field) for d in documents)
    for path in folder.iterdir():
        if path.is_dir() and path.name != DROPPED and not path.name.startswith("."):
            parts.setdefault(path.name, [])
    made = {name: "\n\n".join(texts) for name, texts in sorted(parts.items())}
    for name, text in made.items():
        size = len(text.encode("utf-8", "replace"))
        if size < _FEWEST_BYTES:
            raise InputError(
                f"Domain {name!r} has {size} bytes of text in field {field!r}: give it more, or leave it out."
            )
    if len(made) < 2:
        raise InputError(f"{folder} has {len(made)} domains: give at least two.")
    return made
