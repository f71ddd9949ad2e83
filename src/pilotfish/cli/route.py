"""Commands on routing: fit a router, compare policies on recorded replies, explain decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotfish.cli.options import options, pairs
from pilotfish.cli.traffic import Config, Log
from pilotfish.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pilotfish.protocols import Model
    from pilotfish.route.explain import Explanation
    from pilotfish.traffic.table import ReplyTable
    from pilotfish.types import Reply, Request

__all__ = ["app"]

app = typer.Typer(help="Route queries to models by recorded replies.", no_args_is_help=True)

Table = Annotated[Path, typer.Option("--table", "-t", help="JSON lines: query, model, reply, score, cost, latency")]
Budget = Annotated[str, typer.Option("--budget", "-b", help="dollars per queries, such as 2usd/1k")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of the cut of the table")]
Live = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="NAME=SOURCE: a local model for a name of the table, where a method asks one"),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE: an argument of the method, the value as JSON or text")
]


class _Absent:
    """Stands for a model that is not there to be asked: it says what was recorded, and fails on all else.

    Parameters
    ----------
    name : str
        The model's.
    recorded : mapping of str to str
        Answers by prompt.
    """

    def __init__(self, name: str, recorded: Mapping[str, str]) -> None:
        self.name = name
        self.recorded = recorded

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        from pilotfish.types import Reply

        for request in requests:
            if request.prompt not in self.recorded:
                raise ModelError(f"Model {self.name!r} is only named here: give --model {self.name}=SOURCE to ask it.")
        return [Reply(self.recorded[request.prompt], self.name) for request in requests]


def _live(given: list[str] | None, known: Sequence[str]) -> dict[str, Model]:
    if not given:
        return {}
    from pilotfish.models.gguf import GGUFModel

    sources = pairs(given, "--model")
    for name in sources:
        if name not in known:
            raise InputError(f"--model names {name!r}, which is no model here: give one of {', '.join(known)}.")
    return {name: GGUFModel(source) for name, source in sources.items()}


def _explained(path: Path, prompt: str, said: Mapping[str, str], live: list[str] | None) -> Explanation:
    """Load what 'pilotfish route fit' wrote, a router's file or a route's folder, and explain its decision."""
    from pilotfish.methods.build import Route, models_of
    from pilotfish.route.explain import explain
    from pilotfish.route.router import Router
    from pilotfish.types import Request

    if path.is_dir():
        settings, table = Route.read(path)
        recorded = {name: _recorded(table, name) for name in models_of(settings, table)}
    else:
        recorded = {candidate.name: {} for candidate in Router.candidates_in(path)}
    for name, text in said.items():
        if name not in recorded:
            raise InputError(f"--reply names {name!r}, which {path} does not ask: give one of {', '.join(recorded)}.")
        recorded[name][prompt] = text
    models: dict[str, Any] = {name: _Absent(name, replies) for name, replies in recorded.items()}
    models |= _live(live, tuple(recorded))
    request = Request.of(prompt)
    if path.is_dir():
        return Route(settings, table, models).explain(request)
    return explain(Router.load(path, models), request)


def _recorded(table: ReplyTable, model: str) -> dict[str, str]:
    if model not in table.models:
        return {}
    column = table.column(model)
    rows = zip(table.queries, table.replies, strict=bool(table.replies))
    return {query: reply for query, row in rows if (reply := row[column]) is not None}


@app.command(name="table")
def table_(
    task: Annotated[str, typer.Argument(help="a task of the traffic log, as 'pilotfish status' shows it")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write, JSON lines")] = Path("table.jsonl"),
    config: Config = None,
    log: Log = None,
) -> None:
    """Make a table of a task's logged calls: what each model said, whether that was right, and what it cost."""
    from pilotfish.cli.output import console
    from pilotfish.gateway.sources import load_config
    from pilotfish.traffic.table import ReplyTable

    settings = load_config(config, {"log": {"path": log}} if log is not None else None)
    made = ReplyTable.from_traffic(task, settings.log.path)
    made.to_jsonl(out)
    console.print(f"Wrote {out}: {made.n_queries:,} queries.")
    for name, asked in zip(made.models, made.asked.sum(axis=0).tolist(), strict=True):
        console.print(f"  {name} answered {asked:,}", highlight=False)
    if made.n_models < 2:
        console.print("Policies choose among models: add the replies of others, one JSON line an answer.")


@app.command()
def fit(
    table: Table,
    budget: Budget,
    out: Annotated[Path, typer.Option("--out", "-o", help="file or folder to write")] = Path("router.npz"),
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="a method of 'pilotfish methods routing' or cascades")
    ] = "kernel_router",
    model: Live = None,
    option: Options = None,
    level: Annotated[
        float | None, typer.Option("--level", help="serve the cheapest setting certified to lose no more score")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a policy on a table, choose its setting for a budget, and save it for serving."""
    from pilotfish.cli.output import bar, console
    from pilotfish.methods.build import Route
    from pilotfish.models.states import reading_told
    from pilotfish.route.router import Router
    from pilotfish.traffic.table import ReplyTable

    read = ReplyTable.from_jsonl(table)
    out = out if policy == "kernel_router" or out.suffix != ".npz" else out.with_suffix("")
    if any(place.exists() and place.samefile(table) for place in (out, out / "table.jsonl")):
        raise InputError(f"--out is {out}, where the table itself would be written over: give another place.")
    settings = {"policy": policy, "budget": budget, "seed": seed, "options": options(option)}
    if level is not None:
        settings["level"] = level
    models: dict[str, Any] = {**{name: _Absent(name, {}) for name in read.models}, **_live(model, read.models)}
    with bar(f"fitting {policy}") as progress, reading_told(progress):
        route = Route(settings, read, models)
    if policy == "kernel_router" and isinstance(route.model, Router):
        route.model.save(out)
    else:
        route.save(out)
    for said in route.warnings:
        console.print(said)
    quality, cost = route.measured
    console.print(
        f"Wrote {out}: {quality:.3f} at ${cost:.3g} per query on {route.n_calibrate} queries it was not fitted on. "
        "The setting was chosen on them: 'pilotfish route compare' measures on fresh ones."
    )


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="the new model, by its name in the table")],
    table: Table,
    router: Annotated[Path, typer.Option("--router", "-r", help="file or folder written by 'pilotfish route fit'")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="where to write; over the router by default")] = None,
) -> None:
    """Add a model to a saved policy that predicts scores, from 5 to 50 scored queries; the rest stays as it is."""
    from pilotfish.cli.output import console
    from pilotfish.methods.build import Route, models_of
    from pilotfish.route.router import Router
    from pilotfish.traffic.table import ReplyTable
    from pilotfish.types import Request

    new = ReplyTable.from_jsonl(table).of_models([name])
    if not router.is_dir():
        models: dict[str, Any] = {known.name: _Absent(known.name, {}) for known in Router.candidates_in(router)}
        loaded = Router.load(router, models)
        loaded.add_model(name, _Absent(name, {}), new)
        loaded.save(out or router)
        console.print(f"Wrote {out or router}: it routes to {', '.join(loaded.names)}.")
        return
    settings, recorded = Route.read(router)
    if name in models_of(settings, recorded):
        raise InputError(f"Model {name!r} is already routed to: give the new model another name.")
    settings["added"] = [*settings.get("added", ()), *new.rows()]
    route = Route(settings, recorded, {each: _Absent(each, {}) for each in models_of(settings, recorded)})
    served, queries = route.model, [Request.of(query) for query in recorded.queries]
    assert isinstance(served, Router), "models are added to routers only"
    _, costs, winners = served.weigh(queries)
    share = float((winners == served.names.index(name)).mean())
    cost, budget = float(costs[range(len(queries)), winners].mean()), float(route.settings["budget"])
    route.save(out or router)
    above = f", above the budget of ${budget:.3g}: fit anew to keep to it" if cost > budget else ""
    console.print(f"Wrote {out or router}: it routes to {', '.join(served.names)}.")
    console.print(f"On its table {name} is to answer {share:.0%}, and a query to cost ${cost:.3g}{above}.")


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
    from dataclasses import replace

    from rich.table import Table as Grid

    from pilotfish.cli.output import bar, console, write_text
    from pilotfish.methods.build import make_policy, policies_without_models, warned_of_replies
    from pilotfish.models.states import reading_told
    from pilotfish.route.compare import compare as run
    from pilotfish.traffic.table import ReplyTable

    read = ReplyTable.from_jsonl(table)
    names = [name.strip() for name in policy.split(",") if name.strip()]
    if option and not names:
        raise InputError("--option is given without --policy: name the methods that take it.")
    own, live = options(option), _live(model, read.models)
    policies = [make_policy(name, read, live=live, options=own) for name in names] or policies_without_models(read)
    with bar("comparing policies") as progress, reading_told(progress):
        report = run(read, policies, budget, level=level, seed=seed)
    if not names:
        report = replace(report, warnings=(*warned_of_replies(read), *report.warnings))
    grid = Grid("policy", box=None, pad_edge=False, header_style="bold")
    for name in ("score", "95 % interval", "cost", "gap recovered", "certified kept"):
        grid.add_column(name, justify="right")
    for row in sorted(report.rows, key=lambda r: -(r.quality if r.quality == r.quality else -1.0)):
        kept = row.certificate.weak_share if row.certificate and row.certificate.setting is not None else None
        grid.add_row(
            row.name,
            _shown(row.quality, ".3f"),
            f"{row.low:.3f} to {row.high:.3f}" if row.within_budget else "above budget",
            _shown(row.cost if row.within_budget else row.least_cost, ".3g", "$"),
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
    router: Annotated[Path, typer.Option("--router", "-r", help="file or folder written by 'pilotfish route fit'")],
    reply: Annotated[
        list[str] | None, typer.Option("--reply", help="NAME=TEXT: what a model answers, where the decision needs it")
    ] = None,
    model: Live = None,
) -> None:
    """Show what a saved policy makes of every model on a prompt, which one it would choose, and why."""
    from rich.table import Table as Grid

    from pilotfish.cli.output import console

    told = _explained(router, prompt, pairs(reply, "--reply"), model)
    columns = {
        "score": [_shown(row.score, ".4g") for row in told.rows],
        "needs": [_shown(row.needs, ".4g") for row in told.rows],
        "expected cost": [_shown(row.cost, ".3g", "$") for row in told.rows],
        "score minus price": [_shown(row.value, ".4g") for row in told.rows],
        "answered": [_shown(row.share, ".0%") for row in told.rows],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    grid = Grid("model", box=None, pad_edge=False, header_style="bold")
    for name in shown:
        grid.add_column(name, justify="right")
    grid.add_column("here")
    for k, row in enumerate(told.rows):
        grid.add_row(row.model, *(cells[k] for cells in shown.values()), row.verdict)
    console.print(grid)
    console.print(told.rule)
    console.print(told.reason)


def _shown(value: float, form: str, before: str = "") -> str:
    return f"{before}{value:{form}}" if value == value else "-"
