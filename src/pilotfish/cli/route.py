"""Commands on routing: fit a router, compare policies on recorded replies, explain decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotfish.cli.options import options, pairs
from pilotfish.errors import InputError, ModelError

if TYPE_CHECKING:
    from pilotfish.protocols import Model
    from pilotfish.route.router import Router

__all__ = ["app"]

app = typer.Typer(help="Route queries to models by recorded replies.", no_args_is_help=True)

Table = Annotated[Path, typer.Option("--table", "-t", help="JSON lines: query, model, reply, score, cost, latency")]
Budget = Annotated[str, typer.Option("--budget", "-b", help="dollars per queries, such as 2usd/1k")]
Seed = Annotated[int, typer.Option("--seed", help="seed of the cut of the table")]
Live = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="NAME=SOURCE: a local model for a name of the table, where a method asks one"),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE: an argument of the method, the value as JSON or text")
]


class _Absent:
    """Stands for a model that is not asked while decisions are explained."""

    def generate(self, requests: object) -> list[object]:  # noqa: ARG002 - the shape of a model
        raise ModelError("This model is only named here and cannot answer: serve the router to ask it.")


def _live(given: list[str] | None) -> dict[str, Model]:
    if not given:
        return {}
    from pilotfish.models.gguf import GGUFModel

    return {name: GGUFModel(source) for name, source in pairs(given, "--model").items()}


def _router(path: Path) -> Router:
    import json

    from pilotfish.files import read_arrays
    from pilotfish.route.router import Router

    with read_arrays(path, "router") as file:
        names = [c["name"] for c in json.loads(file["about"].tobytes())["candidates"]]
    absent = dict.fromkeys(names, _Absent())
    return Router.load(path, absent)  # type: ignore[arg-type]


@app.command()
def fit(
    table: Table,
    budget: Budget,
    out: Annotated[Path, typer.Option("--out", "-o", help="file or folder to write")] = Path("router.npz"),
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="a method of 'pilotfish methods --group routing' or cascades")
    ] = "kernel_router",
    model: Live = None,
    option: Options = None,
    level: Annotated[
        float | None, typer.Option("--level", help="serve the cheapest setting certified to lose no more score")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a policy on a table, choose its setting for a budget, and save it for serving."""
    from pilotfish.cli.output import console
    from pilotfish.methods.build import Route, parse_budget
    from pilotfish.route.router import Router
    from pilotfish.traffic.table import ReplyTable

    read = ReplyTable.from_jsonl(table)
    settings = {"policy": policy, "budget": parse_budget(budget), "seed": seed, "options": options(option)}
    if level is not None:
        settings["level"] = level
    models: dict[str, Any] = {**dict.fromkeys(read.models, _Absent()), **_live(model)}
    route = Route(settings, read, models)
    if policy == "kernel_router" and isinstance(route.model, Router):
        route.model.save(out)
    else:
        out = out.with_suffix("") if out.suffix == ".npz" else out
        route.save(out)
    n_left_out = read.n_queries - read.complete().n_queries
    if n_left_out:
        console.print(f"Left out {n_left_out} queries that some model has no score for.")
    quality, cost = route.measured
    console.print(
        f"Wrote {out}: {quality:.3f} at ${cost:.3g} per query on {route.n_calibrate} queries it was not fitted on. "
        "The setting was chosen on them: 'pilotfish route compare' measures on fresh ones."
    )


@app.command()
def compare(
    table: Table,
    budget: Budget,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="names, comma-separated; by default all that need only the table")
    ] = "",
    model: Live = None,
    option: Options = None,
    html: Annotated[Path | None, typer.Option("--html", help="write the report page here")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the report as JSON here")] = None,
    level: Annotated[float, typer.Option("--level", help="loss of score to certify")] = 0.02,
    seed: Seed = 0,
) -> None:
    """Measure policies on recorded replies: what each would have cost and how good it would have been."""
    import json

    from rich.table import Table as Grid

    from pilotfish.cli.output import console, write_text
    from pilotfish.methods.build import make_policy, parse_budget, policies_without_models
    from pilotfish.route.compare import compare as run
    from pilotfish.traffic.table import ReplyTable

    read = ReplyTable.from_jsonl(table)
    names = [name.strip() for name in policy.split(",") if name.strip()]
    if option and not names:
        raise InputError("--option is given without --policy: name the methods that take it.")
    own, live = options(option), _live(model)
    policies = [make_policy(name, read, live=live, options=own) for name in names] or policies_without_models(read)
    report = run(read, policies, parse_budget(budget), level=level, seed=seed)
    grid = Grid("policy", box=None, pad_edge=False, header_style="bold")
    for name in ("score", "95 % interval", "cost", "gap recovered", "certified kept"):
        grid.add_column(name, justify="right")
    for row in sorted(report.rows, key=lambda r: -(r.quality if r.quality == r.quality else -1.0)):
        kept = row.certificate.weak_share if row.certificate and row.certificate.setting is not None else None
        grid.add_row(
            row.name,
            _shown(row.quality, ".3f"),
            f"{_shown(row.low, '.3f')} to {_shown(row.high, '.3f')}",
            _shown(row.cost, ".3g", "$"),
            _shown(row.recovered, ".2f"),
            "-" if kept is None else f"{kept:.0%}",
        )
    console.print(grid)
    for said in (*report.warnings, report.recommendation):
        console.print(said)
    if html is not None:
        write_text(html, report.to_html())
        console.print(f"Wrote {html}.")
    if json_out is not None:
        write_text(json_out, json.dumps(report.to_json(), indent=1) + "\n")
        console.print(f"Wrote {json_out}.")


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="the prompt to route")],
    router: Annotated[Path, typer.Option("--router", "-r", help="file written by 'pilotfish route fit'")],
) -> None:
    """Show what a saved router expects of every model on a prompt, and which one it would ask."""
    from rich.table import Table as Grid

    from pilotfish.cli.output import console
    from pilotfish.types import Request

    loaded = _router(router)
    scores, costs = loaded.predict([prompt])
    [(_, reason)] = loaded.decide([Request.of(prompt)])
    grid = Grid("model", box=None, pad_edge=False, header_style="bold")
    for name in ("predicted score", "predicted cost", "score minus price"):
        grid.add_column(name, justify="right")
    for name, score, cost in zip(loaded.names, scores[0], costs[0], strict=True):
        grid.add_row(name, f"{score:.3f}", f"${cost:.3g}", f"{score - loaded.price * cost:.3f}")
    console.print(grid)
    console.print(reason)


def _shown(value: float, form: str, before: str = "") -> str:
    return f"{before}{value:{form}}" if value == value else "-"
