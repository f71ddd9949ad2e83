"""Forecast a model's scores on tasks from a table of known models, with an interval and plain baselines."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.files import json_lines
from pilotfish.protocols import FloatArray
from pilotfish.scorers.forecasting import ProxyLM, leave_one_out, task_similarity, text_features

__all__ = ["Forecast", "TaskForecast", "forecast"]

_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*b(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TaskForecast:
    """The forecast of one task: value, a 90 % interval (less of few known models), and what the baselines would say."""

    task: str
    value: float
    low: float
    high: float
    mean: float
    nearest: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecasts of a model on every task, and how far such forecasts were off for known models."""

    rows: list[TaskForecast]
    note: str


def forecast(card: str | Path, proxies: Sequence[str], tasks: str | Path) -> Forecast:
    """Forecast from files.

    Parameters
    ----------
    card : str or Path
        TOML with ``parameters`` (a number, such as 70e9), optionally ``[stated]`` with the model's scores by task, and
        ``[models]`` with the parameters of known models whose names do not state them.
    proxies : sequence of str
        Small models that have a score on every task.
    tasks : str or Path
        JSON lines with ``query``, ``task`` and ``scores``, a mapping from model to a number in [0, 1]; optionally
        ``metric``, how the task's answers are scored, which tells what tasks go together.

    Raises
    ------
    InputError
        When a file cannot be read or a field is missing; the sentence names it.
    """
    about = _read_card(Path(card))
    queries, found, metrics = _read_tasks(Path(tasks))
    names, models = sorted(queries), sorted({m for rows in found.values() for m in rows})
    unknown = sorted(set(proxies) - set(models))
    if unknown:
        raise InputError(f"Proxy {unknown[0]!r} has no score in {tasks}: it holds {', '.join(models)}.")
    scores = np.array([[np.mean(found[t][m]) if m in found[t] else np.nan for t in names] for m in models])
    sizes = {m: [_size(m, about)] for m in models}
    data = np.array([text_features(queries[t]) for t in names])
    alike = task_similarity([queries[t] for t in names], [metrics[t] for t in names] if metrics else None)
    stated = {t: float(v) for t, v in about.get("stated", {}).items()}
    made = ProxyLM().fit(scores, models, names, data, proxies, sizes, alike)
    value = made.predict([_log(about["parameters"])], stated)
    off = _errors(scores, models, names, data, proxies, sizes, [t for t in stated if t in names], alike)
    # The next error is as likely to be the largest of all as any other: of n errors none holds more than n / (n + 1).
    place = math.ceil(0.9 * (off.size + 1))
    half = float(np.sort(off)[min(place, off.size) - 1]) if off.size else math.nan
    nearest = min(range(len(models)), key=lambda i: abs(sizes[models[i]][0] - _log(about["parameters"])))
    rows = []
    for j, task in enumerate(names):
        own = 0.0 if task in stated else half
        rows.append(
            TaskForecast(
                task,
                float(value[j]),
                max(0.0, float(value[j]) - own),
                min(1.0, float(value[j]) + own),
                float(np.nanmean(scores[:, j])),
                float(scores[nearest, j]),
            )
        )
    note = "There are too few known models for an interval: give scores of models other than the proxies."
    if off.size >= place:
        note = (
            f"Intervals: 90 % of {off.size} forecasts of known models, each left out in turn, were nearer than "
            f"{half:.3f}."
        )
    elif off.size:
        note = (
            f"Intervals reach as far as the farthest of {off.size} forecasts of known models, each left out in turn "
            f"({half:.3f}): so few hold {100 * off.size / (off.size + 1):.0f} %, not 90 %."
        )
    return Forecast(rows, note)


def _errors(
    scores: FloatArray,
    models: Sequence[str],
    tasks: Sequence[str],
    data: FloatArray,
    proxies: Sequence[str],
    sizes: dict[str, list[float]],
    stated: Sequence[str],
    alike: FloatArray,
) -> FloatArray:
    if len(models) < len(proxies) + 2:
        return np.empty(0)
    at = [tasks.index(t) for t in stated]
    usable = [t for t, j in zip(stated, at, strict=True) if np.isfinite(scores[:, j]).all()]
    predicted = leave_one_out(scores, models, tasks, data, proxies, sizes, usable, alike)
    errors = np.abs(np.delete(predicted - scores, at, axis=1))
    return np.asarray(errors[np.isfinite(errors)])


def _read_card(path: Path) -> dict[str, Any]:
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The model card {path} cannot be read ({error}): give a TOML file.") from error
    if not _is_size(about.get("parameters")):
        raise InputError(f"The model card {path} has no 'parameters': give a number such as parameters = 70e9.")
    for table, known, such in (("stated", _is_number, "gsm8k = 0.91"), ("models", _is_size, "small1 = 1e9")):
        own = about.get(table, {})
        if not isinstance(own, dict):
            raise InputError(f"{table!r} of the model card {path} is {own!r}: give a table [{table}] of {such}.")
        for name, value in own.items():
            if not known(value):
                raise InputError(f"{table}.{name} of the model card {path} is {value!r}: give a number, as {such}.")
    return about


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _read_tasks(path: Path) -> tuple[dict[str, list[str]], dict[str, dict[str, list[float]]], dict[str, str]]:
    """Queries and scores by task, and how each task's answers are scored where every one says so."""
    queries: dict[str, list[str]] = {}
    metrics: dict[str, str] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    for number, row in json_lines(path):
        try:
            task, query, own = str(row["task"]), str(row["query"]), dict(row["scores"])
            values = {str(m): float(v) for m, v in own.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number} is wrong ({error!r}): give query, task and scores.") from error
        if not all(0 <= v <= 1 for v in values.values()):
            raise InputError(f"{path} line {number} has a score outside [0, 1]: scale scores first.")
        queries.setdefault(task, []).append(query)
        if row.get("metric"):
            metrics.setdefault(task, str(row["metric"]))
        for model, value in values.items():
            scores.setdefault(task, {}).setdefault(model, []).append(value)
    if not queries:
        raise InputError(f"{path} has no rows: give query, task and scores.")
    return queries, scores, metrics if len(metrics) == len(queries) else {}


def _log(parameters: float) -> float:
    return math.log10(parameters / 1e9)


def _size(name: str, about: dict[str, Any]) -> float:
    known = about.get("models", {}).get(name)
    if known is not None:
        return _log(float(known))
    found = _SIZE.findall(name)
    if not found:
        raise InputError(f"The size of model {name!r} is unknown: add it to [models] of the card, such as 7e9.")
    return math.log10(float(found[-1]))
