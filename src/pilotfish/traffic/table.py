"""Reply tables: what each model answered to each query, how good it was and what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.answers import normalise
from pilotfish.errors import InputError
from pilotfish.files import json_lines, replacing
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.traffic.calls import UPSTREAM, Call
from pilotfish.traffic.log import TrafficLog

__all__ = ["ReplyTable", "refuse_no_choice", "refuse_shared_queries"]

_NUMBERS = ("score", "cost", "latency")
# Fewer cannot be cut into queries to fit on, to choose a setting on and to test on.
_FEWEST = 4


@dataclass(frozen=True, slots=True, eq=False)
class ReplyTable:
    """Queries by models: reply, score, cost and latency. NaN means "not asked" (or, for a score, not judged).

    Parameters
    ----------
    queries : tuple of str, (n,)
        The prompts; the same text may occur more than once.
    models : tuple of str, (m,)
        Names of the models, all different.
    scores : ndarray of float, (n, m)
        Quality of each answer, higher is better, usually in [0, 1].
    costs : ndarray of float, (n, m)
        Price of each answer in US dollars, at least 0.
    latencies : ndarray of float, (n, m)
        Seconds until each answer; NaN where unknown.
    replies : tuple of tuple of (str or None), (n, m)
        The answers; empty when none were recorded.
    groups : tuple of str, (n,)
        A group of each query (a subject, a customer), for splits that hold out whole groups; empty when there is none.

    Raises
    ------
    InputError
        When shapes disagree, a query is no text, a cost is negative or infinite, a score is infinite, or a model's name
        occurs twice.

    Examples
    --------
    >>> table = ReplyTable.of(["hi", "why?"], {"small": [1, 0], "large": [1, 1]}, costs={"small": 0.1, "large": 2.0})
    >>> table.n_queries, table.scores.mean(axis=0)
    (2, array([0.5, 1. ]))
    """

    queries: tuple[str, ...]
    models: tuple[str, ...]
    scores: FloatArray
    costs: FloatArray
    latencies: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    replies: tuple[tuple[str | None, ...], ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.queries), len(self.models))
        for i, query in enumerate(self.queries):
            if not isinstance(query, str):
                raise InputError(f"Query {i} is {query!r}: give queries as text.")
        if self.latencies.size == 0:
            object.__setattr__(self, "latencies", np.full(shape, np.nan))
        repeated = [name for name, k in Counter(self.models).items() if k > 1]
        if repeated:
            raise InputError(f"models names {repeated[0]!r} more than once: give each model its own name.")
        for name, values in (("scores", self.scores), ("costs", self.costs), ("latencies", self.latencies)):
            if values.shape != shape:
                raise InputError(
                    f"{name} have shape {values.shape}: give {shape}, one row per query and one column per model."
                )
            if np.isinf(values).any():
                i, j = (int(k[0]) for k in np.nonzero(np.isinf(values)))
                raise InputError(
                    f"{name} of query {i} and model {self.models[j]!r} is infinite: give a number, or NaN."
                )
        if (self.costs < 0).any():
            i, j = (int(k[0]) for k in np.nonzero(self.costs < 0))
            raise InputError(
                f"costs of query {i} and model {self.models[j]!r} is {self.costs[i, j]:g}: give dollars of at least 0."
            )
        unpriced = np.isfinite(self.scores) & np.isnan(self.costs)
        if unpriced.any():
            i, j = (int(k[0]) for k in np.nonzero(unpriced))
            raise InputError(
                f"{int(unpriced.sum())} scored answers have no cost, first query {i} and model {self.models[j]!r}: "
                "give the cost of every answer that was asked for."
            )
        for name, column in (("replies", self.replies), ("groups", self.groups)):
            if column and len(column) != shape[0]:
                raise InputError(f"{name} has {len(column)} rows for {shape[0]} queries: give one per query or none.")

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        scores: Mapping[str, Sequence[float] | FloatArray],
        costs: Mapping[str, float | Sequence[float] | FloatArray],
        *,
        latencies: Mapping[str, float | Sequence[float]] | None = None,
        replies: Mapping[str, Sequence[str | None]] | None = None,
        groups: Sequence[str] = (),
    ) -> ReplyTable:
        """Make a table of columns; a single number stands for the same number in every row.

        Raises
        ------
        InputError
            When a column is missing, is no numbers, or has another length than the queries.
        """
        n, models = len(queries), tuple(scores)

        def columns(name: str, given: Mapping[str, Any]) -> FloatArray:
            out = np.empty((n, len(models)))
            for j, model in enumerate(models):
                if model not in given:
                    raise InputError(
                        f"{name} has no column for model {model!r}: give one for each of {', '.join(models)}."
                    )
                try:
                    column = np.asarray(given[model], dtype=np.float64)
                except (TypeError, ValueError) as error:
                    raise InputError(f"{name} of model {model!r} are no numbers ({error}): give numbers.") from error
                if column.ndim and column.shape != (n,):
                    raise InputError(
                        f"{name} of model {model!r} has shape {column.shape}: give one number per query, ({n},)."
                    )
                out[:, j] = column
            return out

        said: list[Sequence[str | None]] = [replies.get(model, ()) for model in models] if replies is not None else []
        for model, texts in zip(models, said, strict=False):
            if len(texts) != n:
                raise InputError(f"replies of model {model!r} are {len(texts)} for {n} queries: give one per query.")
        return cls(
            tuple(queries),
            models,
            columns("scores", scores),
            columns("costs", costs),
            columns("latencies", latencies) if latencies is not None else np.full((n, len(models)), np.nan),
            tuple(zip(*said, strict=True)),
            tuple(groups),
        )

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> ReplyTable:
        """Make a table of rows with the fields query, model, and any of reply, score, cost, latency and group.

        Rows of the same query and model are refused: a table holds one answer of each model.

        Raises
        ------
        InputError
            When a row has no query or model, a field is not a number, or an answer occurs twice.
        """
        where: dict[str, int] = {}
        columns: dict[str, int] = {}
        groups: list[str] = []
        cells: dict[tuple[int, int], tuple[str | None, float, float, float]] = {}
        n_repeated = 0
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise InputError(f"Row {number} is a {type(row).__name__}: give an object with query and model.")
            query, model = row.get("query"), row.get("model")
            if not isinstance(query, str) or not isinstance(model, str):
                raise InputError(f"Row {number} has query {query!r} and model {model!r}: give both as text.")
            i = where.setdefault(query, len(where))
            j = columns.setdefault(model, len(columns))
            if i == len(groups):
                groups.append(str(row.get("group", "")))
            n_repeated += (i, j) in cells
            score, cost, latency = (_number(row, name, number) for name in _NUMBERS)
            reply = row.get("reply")
            cells[i, j] = (None if reply is None else str(reply), score, cost, latency)
        if n_repeated:
            raise InputError(f"{n_repeated} answers occur more than once (same query and model): keep one of each.")
        shape = (len(where), len(columns))
        numbers = np.full((3, *shape), np.nan)
        texts: list[list[str | None]] = [[None] * shape[1] for _ in range(shape[0])]
        for (i, j), (reply_text, *values) in cells.items():
            texts[i][j] = reply_text
            numbers[:, i, j] = values
        recorded = any(text is not None for line in texts for text in line)
        return cls(
            tuple(where),
            tuple(columns),
            scores=numbers[0],
            costs=numbers[1],
            latencies=numbers[2],
            replies=tuple(map(tuple, texts)) if recorded else (),
            groups=tuple(groups) if any(groups) else (),
        )

    @classmethod
    def from_traffic(cls, task: str, log: Path | str = "pilotfish.db") -> ReplyTable:
        """Make a table of a task's logged calls: what each model that was asked said, and the student's prediction.

        A reply scores 1 where it agrees with the gold label or, where none is known, with the large model's answer. The
        last call with the same query counts.

        Parameters
        ----------
        task : str
            Name of the task, as ``pilotfish status`` shows it.
        log : Path or str
            The traffic log.

        Raises
        ------
        InputError
            When the task has no answered calls.
        """
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        with TrafficLog(log, read_only=True) as opened:
            for call in opened.calls(task=task):
                rows.update({(row["query"], row["model"]): row for row in _rows_of(call)})
        if not rows:
            raise InputError(f"task is {task!r}, which has no answered calls in {log}: give a task of this log.")
        return cls.from_rows(rows.values())

    @classmethod
    def from_jsonl(cls, path: Path | str) -> ReplyTable:
        """Read a table written by :meth:`to_jsonl`, or any JSON lines with the fields of :meth:`from_rows`.

        Raises
        ------
        InputError
            When the file cannot be read or is empty, or a line is not a JSON object; the sentence names the line.
        """
        if not Path(path).is_file():
            raise InputError(f"Table {path} is not a file: give one of JSON lines with query, model, reply, score.")
        table = cls.from_rows(row for _, row in json_lines(path))
        if not table.queries:
            raise InputError(f"Table {path} is empty: give JSON lines with query, model, reply, score and cost.")
        return table

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per answer that was asked for; numbers that are NaN are left out."""
        asked = self.asked
        for i, query in enumerate(self.queries):
            for j, model in enumerate(self.models):
                if not asked[i, j]:
                    continue
                row: dict[str, Any] = {"query": query, "model": model}
                if self.replies and self.replies[i][j] is not None:
                    row["reply"] = self.replies[i][j]
                for name, values in zip(_NUMBERS, (self.scores, self.costs, self.latencies), strict=True):
                    if not np.isnan(values[i, j]):
                        row[name] = float(values[i, j])
                if self.groups:
                    row["group"] = self.groups[i]
                yield row

    def to_jsonl(self, path: Path | str) -> None:
        """Write one JSON object per answer, for the owner to read; the file appears whole or not at all.

        Raises
        ------
        InputError
            When a query occurs more than once: rows are put together by the texts of their queries.
        """
        if n_repeated := self.n_queries - len(set(self.queries)):
            raise InputError(f"{n_repeated} queries occur more than once: keep one of each to write the table.")
        with replacing(path, private=True) as half, half.open("w", encoding="utf-8") as out:
            for row in self.rows():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.models)

    @property
    def asked(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which answers were asked for, (n, m)."""
        return ~(np.isnan(self.costs) & np.isnan(self.scores) & np.isnan(self.latencies))

    def column(self, model: str) -> int:
        """Index of a model.

        Raises
        ------
        InputError
            When the table has no such model.
        """
        if model not in self.models:
            raise InputError(f"The table has no model {model!r}: it has {', '.join(self.models)}.")
        return self.models.index(model)

    def of_models(self, models: Sequence[str]) -> ReplyTable:
        """Keep some models, in the order given."""
        at = [self.column(model) for model in models]
        replies = tuple(tuple(row[j] for j in at) for row in self.replies)
        return replace(
            self,
            models=tuple(models),
            scores=self.scores[:, at],
            costs=self.costs[:, at],
            latencies=self.latencies[:, at],
            replies=replies,
        )

    def score_of(self, row: int, answer: str) -> float:
        """Best score that any model got with this very answer to a query; 0 where no model gave it.

        Examples
        --------
        >>> said = {"a": ["Yes"], "b": ["no"]}
        >>> table = ReplyTable.of(["is it?"], {"a": [1], "b": [0]}, {"a": 1.0, "b": 2.0}, replies=said)
        >>> table.score_of(0, "yes"), table.score_of(0, "no"), table.score_of(0, "perhaps")
        (1.0, 0.0, 0.0)
        """
        given = self.replies[row] if self.replies else ()
        same = [
            float(score)
            for score, reply in zip(self.scores[row], given, strict=False)
            if reply is not None and score == score and normalise(reply) == normalise(answer)
        ]
        return max(same, default=0.0)

    def subset(self, rows: Sequence[int] | IntArray) -> ReplyTable:
        """Keep some queries, in the order given."""
        at = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            queries=tuple(self.queries[i] for i in at),
            scores=self.scores[at],
            costs=self.costs[at],
            latencies=self.latencies[at],
            replies=tuple(self.replies[i] for i in at) if self.replies else (),
            groups=tuple(self.groups[i] for i in at) if self.groups else (),
        )

    def complete(self) -> ReplyTable:
        """Keep the queries for which every model has a score and a cost.

        Raises
        ------
        InputError
            When no such query is left.
        """
        kept = np.flatnonzero(np.isfinite(self.scores).all(axis=1) & np.isfinite(self.costs).all(axis=1))
        if kept.size == 0:
            raise InputError("No query has a score and a cost for every model: ask every model some queries first.")
        return self if kept.size == self.n_queries else self.subset(kept)

    def split(self, shares: Sequence[float], *, seed: int = 0, by: str = "query") -> tuple[ReplyTable, ...]:
        """Cut the queries at random into parts that share no query text.

        Parameters
        ----------
        shares : sequence of float
            Share of the queries in each part, positive, adding up to at most 1; the rest is left out.
        seed : int
            Seed of the cut.
        by : str
            ``query`` keeps equal texts together; ``group`` keeps whole groups together, and the shares are of groups.

        Raises
        ------
        InputError
            When the shares are not positive or exceed 1, the seed is negative, or the table has no groups to split by.
        """
        if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise InputError(f"shares is {list(shares)}: give positive shares that add up to at most 1.")
        if by not in ("query", "group"):
            raise InputError(f"by is {by!r}: give 'query' or 'group'.")
        if seed < 0:
            raise InputError(f"seed is {seed}: give a whole number of at least 0.")
        if by == "group" and not self.groups:
            raise InputError("by is 'group' but the table has no groups: give a group per query, or split by 'query'.")
        keys = self.groups if by == "group" else self.queries
        # Not an array of texts, in which each would take as much room as the longest.
        number = {name: k for k, name in enumerate(sorted(set(keys)))}
        place = np.random.default_rng(seed).permutation(len(number))
        ends = np.round(np.cumsum(shares) * len(number)).astype(int)
        part = np.searchsorted(ends, place, side="right")[[number[key] for key in keys]]
        return tuple(self.subset(np.flatnonzero(part == k)) for k in range(len(shares)))


def _rows_of(call: Call) -> Iterator[dict[str, Any]]:
    """The rows of one call: the large model's, and the student's where it predicted."""
    said = call.audit if call.audit is not None else call.answer if call.answered_by == UPSTREAM else None
    right = call.gold if call.gold is not None else said
    if right is None or call.status != 200 or not call.complete:
        return
    if said is not None:
        score = float(normalise(said) == normalise(right))
        yield {"query": call.prompt, "model": call.model or "large", "reply": said, "score": score, "cost": call.cost}
    if call.prediction is not None:
        score = float(normalise(call.prediction) == normalise(right))
        yield {"query": call.prompt, "model": "student", "reply": call.prediction, "score": score, "cost": 0.0}


def refuse_shared_queries(**tables: ReplyTable) -> None:
    """Refuse tables that share query texts: what was learned on one would be tested on itself.

    Raises
    ------
    InputError
        When two tables share a text; the sentence gives the count.

    Examples
    --------
    >>> one = ReplyTable.of(["a", "b"], {"m": [1, 0]}, {"m": 1.0})
    >>> refuse_shared_queries(fit=one, test=one.subset([1]))
    Traceback (most recent call last):
    pilotfish.errors.InputError: 1 queries are in both fit and test: split by query text, with ReplyTable.split.
    """
    names = list(tables)
    for a, first in enumerate(names):
        texts = set(tables[first].queries)
        for second in names[a + 1 :]:
            n_shared = sum(query in texts for query in tables[second].queries)
            if n_shared:
                raise InputError(
                    f"{n_shared} queries are in both {first} and {second}: split by query text, with ReplyTable.split."
                )


def refuse_no_choice(table: ReplyTable, budget: float) -> None:
    """Refuse a table that leaves nothing to choose between its models, or nothing to choose for a budget.

    Parameters
    ----------
    table : ReplyTable
        Recorded replies.
    budget : float
        Dollars per query.

    Raises
    ------
    InputError
        When there are fewer than 4 different queries or two models, every score is the same, or the budget is below
        what the cheapest model costs.

    Examples
    --------
    >>> asked = ["a", "b", "c", "d"]
    >>> refuse_no_choice(ReplyTable.of(asked, {"s": [1] * 4, "l": [1] * 4}, {"s": 1.0, "l": 2.0}), 1.5)
    Traceback (most recent call last):
    pilotfish.errors.InputError: Every score in the table is 1: there is nothing to choose by, give scores that differ.
    """
    if table.n_models < 2:
        raise InputError(f"The table has one model only, {table.models[0]!r}: give replies of at least two.")
    n_queries = len(set(table.queries))
    if n_queries < _FEWEST:
        raise InputError(f"The table has {n_queries} different scored queries: give at least {_FEWEST}.")
    known = table.scores[np.isfinite(table.scores)]
    if known.size == 0 or np.ptp(known) == 0:
        said = f"{known[0]:g}" if known.size else "missing"
        raise InputError(f"Every score in the table is {said}: there is nothing to choose by, give scores that differ.")
    least = float(np.nanmean(table.costs, axis=0).min())
    if not budget >= least - 1e-12:
        raise InputError(f"budget is {budget:g} but the cheapest model costs {least:g} per query: raise the budget.")


def _number(row: Mapping[str, Any], name: str, number: int) -> float:
    value = row.get(name)
    if value is None:
        return float("nan")
    try:
        if isinstance(value, int | float):
            return float(value)
    except OverflowError:
        value = float("inf")
    raise InputError(f"Row {number} has {name} {value!r}: give a number, or leave the field out.")
