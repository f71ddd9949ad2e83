"""Commands on evaluation: score outputs, compare two systems, forecast a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotfish.cli.options import options
from pilotfish.errors import InputError, missing_extra
from pilotfish.files import replacing

if TYPE_CHECKING:
    from pilotfish.evaluate import Evaluation
    from pilotfish.statistics import Interval

__all__ = ["compare", "evaluate", "forecast"]

Metrics = Annotated[str, typer.Option("--metrics", "-m", help="names, comma-separated, of 'pilotfish methods'")]
Nli = Annotated[str, typer.Option("--nli", help="entailment model: a folder, or a name of the hub")]
Judge = Annotated[str, typer.Option("--judge", help="small, or names of the catalog or GGUF files, comma-separated")]
Rubric = Annotated[str, typer.Option("--rubric", help="what a good answer is, for the judges")]
Reader = Annotated[str, typer.Option("--reader", help="small language model that reads texts, by name or file")]
Vectors = Annotated[str, typer.Option("--embedder", help="static, minilm, or a folder")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="METRIC.NAME=VALUE: an argument of a metric, such as bartscore.direction=recall"),
]


def evaluate(
    outputs: Annotated[Path, typer.Argument(help="JSON lines: output; prompt, references, samples, context, label")],
    metrics: Metrics = "rouge,chrf",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="scores: .parquet, .csv or .jsonl")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="write the report page here")] = None,
    nli: Nli = "",
    judge: Annotated[str, typer.Option("--judge", help="small, or a name of the catalog or GGUF file")] = "",
    reader: Reader = "",
    embedder: Vectors = "",
    encoder: Annotated[str, typer.Option("--encoder", help="of bertscore: minilm, mpnet, a folder")] = "minilm",
    layer: Annotated[int | None, typer.Option("--layer", help="of bertscore's encoder; the last by default")] = None,
    rubric: Rubric = "",
    option: Options = None,
    confidence: Annotated[
        Path | None, typer.Option("--confidence", help="what --learn-confidence wrote: scores become probabilities")
    ] = None,
    learn_confidence: Annotated[
        Path | None, typer.Option("--learn-confidence", help="learn from the labels how sure each score is, into .npz")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the bootstrap")] = 0,
) -> None:
    """Score given outputs; nothing is generated. Length and majority baselines stand beside every metric."""
    from rich.table import Table as Grid

    from pilotfish.cli.output import check_place, console, write_text
    from pilotfish.evaluate import evaluate as run
    from pilotfish.evaluate import read_outputs
    from pilotfish.evaluation_page import evaluation_page
    from pilotfish.methods.metrics import make_metrics, metric_parts
    from pilotfish.scorers.confidence import FEWEST_LABELS, confident, fit_calibrators, save_calibrators

    if out is not None and out.suffix not in (".parquet", ".csv", ".jsonl"):
        raise InputError(f"--out is {out}: give a name that ends in .parquet, .csv or .jsonl.")
    for place, named in ((out, "--out"), (report, "--report"), (learn_confidence, "--learn-confidence")):
        check_place(place, named)
    if out is not None and out.suffix == ".parquet":
        _parquet()
    if len(_names(judge)) > 1:
        raise InputError(f"--judge is {judge!r}: give one; 'pilotfish compare' asks several.")
    parts = metric_parts(nli=nli, judge=judge, reader=reader, embedder=embedder)
    parts |= {"encoder": encoder, "layer": layer, "rubric": rubric}
    scorers = make_metrics(_names(metrics), parts, _own_options(option))
    if confidence is not None:
        scorers = confident(scorers, confidence)
    kept: list[str] = []

    def keep(so_far: Evaluation) -> None:
        if out is not None:
            _write_scores(out, so_far)
            kept[:] = so_far.scores

    try:
        done = run(read_outputs(outputs), scorers, seed=seed, scored=keep)
    except BaseException:
        if kept:
            console.print(f"Ended early: {out} has the scores by {', '.join(kept)}.")
        raise
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    grid.add_column("metric", no_wrap=True)
    for name in ("mean", "low", "high", "missing", "AUROC", "matched", "ECE", "human"):
        grid.add_column(name, justify="right")
    for row in done.rows:
        mean = row.mean
        grid.add_row(
            row.name,
            "-" if mean is None else f"{mean.value:.4g}",
            "-" if mean is None else f"{mean.low:.4g}",
            "-" if mean is None else f"{mean.high:.4g}",
            str(row.n_missing),
            _shown(row.auroc),
            _shown(row.auroc_matched),
            _shown(row.error),
            _shown(row.human),
        )
    console.print(grid)
    if done.majority is not None:
        console.print(f"Majority baseline: {done.majority:.1%} of the labels are of one class.")
    console.print(
        "Low, high: 95 % interval of the mean; \u00b1 half of the others'. "
        "Matched: AUROC among right and wrong answers of like length."
    )
    grouped = [f"{r.name} {r.grouping[0]:.4f} to {r.grouping[1]:.4f}" for r in done.rows if r.grouping is not None]
    if grouped:
        console.print(f"Grouping loss before and after confidences are calibrated by group: {', '.join(grouped)}.")
    for name in [row.name for row in done.rows if row.mean is None]:
        console.print(f"No output has a score by {name}: none has what it reads, such as samples or an equation.")
    for name, why in done.failures.items():
        console.print(f"Not measured: {name}. {why}")
    if out is not None:
        _write_scores(out, done)
        console.print(f"Wrote {out}.")
    if report is not None:
        write_text(report, evaluation_page(done, f"Evaluation of {outputs.name}"))
        console.print(f"Wrote {report}.")
    if learn_confidence is not None:
        # Last, since too few labels are an error, and scores may have taken hours.
        own = {name: found for name, found in done.scores.items() if name in scorers}
        learned = fit_calibrators(own, done.outputs.labels)
        save_calibrators(learn_confidence, learned)
        console.print(f"Wrote {learn_confidence}: how sure an answer is by {', '.join(learned)}.")
        if left := [name for name in own if name not in learned]:
            needed = f"{FEWEST_LABELS} scores with labels of both kinds"
            console.print(f"Not learned: {', '.join(left)}. They need {needed}.")


def compare(
    first: Annotated[Path, typer.Argument(help="outputs of the first system, JSON lines")],
    second: Annotated[Path, typer.Argument(help="outputs of the second, with the same ids or in the same order")],
    metrics: Annotated[str, typer.Option("--metrics", "-m", help="names, comma-separated; none by default")] = "",
    judge: Judge = "",
    interval: Annotated[float, typer.Option("--interval", help="confidence in percent")] = 95.0,
    nli: Nli = "",
    reader: Reader = "",
    embedder: Vectors = "",
    rubric: Rubric = "",
    option: Options = None,
    report: Annotated[Path | None, typer.Option("--report", help="write the report page here")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the bootstrap")] = 0,
) -> None:
    """Say whether one system's outputs are better than another's, by metrics and judges, with intervals."""
    from rich.table import Table as Grid

    from pilotfish.cli.output import check_place, console, write_text
    from pilotfish.comparison import compare_outputs
    from pilotfish.comparison_page import comparison_page
    from pilotfish.evaluate import read_outputs
    from pilotfish.methods.metrics import make_metrics, metric_parts
    from pilotfish.scorers.judges import PairJudge, named_judge

    if not 50 <= interval < 100:
        raise InputError(f"--interval is {interval:g}: give a confidence of 50 to 99.9 percent.")
    check_place(report, "--report")
    if not metrics and not judge:
        raise InputError("There is nothing to compare by: give --metrics or --judge.")
    parts = metric_parts(nli=nli, reader=reader, embedder=embedder)
    scorers = make_metrics(_names(metrics), parts, _own_options(option)) if metrics else {}
    judges = [PairJudge(model, rubric) if rubric else PairJudge(model) for model in map(named_judge, _names(judge))]
    done = compare_outputs(read_outputs(first), read_outputs(second), scorers, judges, level=interval / 100, seed=seed)
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    grid.add_column("metric", no_wrap=True)
    for name in ("difference", "low", "high", "p", "wins", "ties", "losses", "missing"):
        grid.add_column(name, justify="right", no_wrap=True)
    for name, test in done.tests.items():
        d = test.difference
        counts = (test.wins, test.ties, test.losses, done.n_left_out[name])
        numbers = [f"{v:+.4g}" for v in (d.value, d.low, d.high)]
        grid.add_row(name, *numbers, f"{test.p_value:.4f}", *map(str, counts))
    console.print(grid)
    console.print(f"{done.n} prompts that both answered; first minus second, with {interval:g} % intervals.")
    for name in done.tests:
        agreed = done.agreement.get(name)
        people = "" if agreed is None else f", agrees with people on {agreed.value:.0%} of {agreed.n} pairs"
        console.print(f"{name}: {done.verdict(name)}{people}{' (baseline)' if name == 'length' else ''}.")
    for name in [name for name in done.n_left_out if name not in done.tests]:
        if name == "panel":
            console.print("No pair is left for the panel: people judged all of them, and those pairs teach it.")
        else:
            console.print(f"No pair has scores of both outputs by {name}: none has what it reads, such as references.")
    for warning in done.warnings():
        console.print(f"Note: {warning}")
    if report is not None:
        write_text(report, comparison_page(done, first.name, second.name))
        console.print(f"Wrote {report}.")


def forecast(
    model_card: Annotated[
        Path, typer.Option("--model-card", help="TOML: parameters, \\[stated] scores, \\[models] sizes")
    ],
    proxies: Annotated[str, typer.Option("--proxies", help="small models with scores on every task, comma-separated")],
    task: Annotated[Path, typer.Option("--task", help="JSON lines: query, task, scores of known models")],
) -> None:
    """Forecast how a large model would do on tasks, from small proxies and its card, before paying for it."""
    from rich.table import Table as Grid

    from pilotfish.cli.output import console
    from pilotfish.forecast import forecast as run

    done = run(model_card, _names(proxies), task)
    grid = Grid("task", box=None, pad_edge=False, header_style="bold")
    for name in ("forecast", "low", "high", "mean of known models", "nearest in size"):
        grid.add_column(name, justify="right")
    for row in done.rows:
        grid.add_row(row.task, *(f"{v:.3f}" for v in (row.value, row.low, row.high, row.mean, row.nearest)))
    console.print(grid)
    console.print(done.note)


def _shown(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.3f} \u00b1{(found.high - found.low) / 2:.3f}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _own_options(given: list[str] | None) -> dict[str, dict[str, Any]]:
    own: dict[str, dict[str, Any]] = {}
    for name, value in options(given).items():
        metric, _, argument = name.partition(".")
        if not argument:
            raise InputError(f"--option is {name!r}: give METRIC.NAME=VALUE, such as rouge.kind=rouge2.")
        own.setdefault(metric, {})[argument] = value
    return own


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Writing parquet") from None
    return pyarrow, parquet


def _write_scores(path: Path, done: Evaluation) -> None:
    import csv
    import io
    import json

    from pilotfish.cli.output import write_text

    rows = done.to_rows()
    if path.suffix == ".parquet":
        pyarrow, parquet = _parquet()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as half:
            parquet.write_table(pyarrow.Table.from_pylist(rows), half)
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        # A cell of the table holds no list: sentences are written as JSON.
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
        write_text(path, text.getvalue())
    else:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
