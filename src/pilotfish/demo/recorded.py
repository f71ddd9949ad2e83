"""Replay recorded traffic: a large model's real answers, one call after the other."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from pilotfish.errors import InputError
from pilotfish.page import Series, cards, chart, dollars, page, section, table
from pilotfish.takeover.replay import Replayed, replay
from pilotfish.traffic.calls import Call
from pilotfish.training.closed_set import ClosedSetStudent

__all__ = ["run"]

_WINDOW = 400


def run(folder: Path, out: Path, console: Console, seed: int = 0) -> Path:
    """Replay the calls of a folder's ``*.jsonl.gz`` files in a seeded order and write a report page.

    Parameters
    ----------
    folder : Path
        Lines with ``text``, ``llm`` (the recorded answer) and, where known, ``label`` and ``llm_cost_usd``.
    out : Path
        Folder for the report; an earlier demo there is removed.
    console : Console
        Where it is told.
    seed : int
        Of the order of the calls.
    """
    calls = _calls(folder)
    random.Random(seed).shuffle(calls)  # noqa: S311 - an order of calls is no secret
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("replay", total=len(calls))
        made = replay(calls, ClosedSetStudent, seed=seed, progress=lambda n: progress.update(bar, completed=n))
    for at, kind, reason in made.events:
        console.print(f"call {at:,}: {kind.replace('_', ' ')}: {reason}", highlight=False)
    console.print(
        f"\n{made.local_share:.1%} of {len(made.local):,} calls answered locally, {made.agreement:.2%} of all replies "
        f"agree with the large model, {dollars(sum(made.cost))} spent in place of {dollars(sum(made.cost_of_large))}.",
        highlight=False,
    )
    path = out / "report.html"
    path.write_text(_page(made), encoding="utf-8")
    console.print(f"The report page: {path}")
    return path


def _calls(folder: Path) -> list[Call]:
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise InputError(f"traffic is {folder}, which holds no .jsonl.gz file: give a folder of recorded calls.")
    made: list[Call] = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                cost = float(row.get("llm_cost_usd") or 0.0)
                gold = row.get("label")
                call = Call.of(row["text"], row["llm"], task=folder.name, cost=cost, id=f"recorded-{len(made)}")
                made.append(call if gold is None else call.replace(gold=gold))
    return made


def _page(made: Replayed) -> str:
    n = len(made.local)
    ends = list(range(_WINDOW, n + 1, _WINDOW)) or [n]
    spans = [slice(end - _WINDOW, end) for end in ends]
    local = [sum(made.local[s]) / _WINDOW for s in spans]
    agreed = [sum(made.agreed[s]) / _WINDOW for s in spans]
    rows = [[f"{at:,}", kind.replace("_", " "), reason] for at, kind, reason in made.events]
    saved = 1 - sum(made.cost) / sum(made.cost_of_large) if sum(made.cost_of_large) else 0.0
    return page(
        "Replay of recorded traffic",
        f"{n:,} calls in the order they came in",
        section(
            "Outcome",
            cards(
                [
                    ("answered locally", f"{made.local_share:.1%}", f"first at call {made.first_local or 0:,}"),
                    ("replies that agree", f"{made.agreement:.2%}", "with the large model, all calls"),
                    ("bill", dollars(sum(made.cost)), f"in place of {dollars(sum(made.cost_of_large))}"),
                    ("saved", f"{saved:.1%}", "audits paid"),
                ]
            ),
        ),
        section(
            "Over time",
            chart(
                [Series("answered locally", ends, local), Series("replies that agree", ends, agreed)],
                x_label="calls",
                y_label=f"share of the last {_WINDOW} calls",
                percent_y=True,
                y_range=(0.0, 1.0),
            ),
        ),
        section("Decisions", table(["call", "what", "why"], rows, numeric=[0])),
    )
