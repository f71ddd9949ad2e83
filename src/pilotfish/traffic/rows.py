"""Calls as rows of the log's tables, one or many at a time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pilotfish.traffic.calls import Call
from pilotfish.traffic.schema import COLUMNS

__all__ = ["CHARGE_CHANGE", "call_of", "conditions", "day_of", "insert", "insert_new"]

ROWS_PER_STATEMENT = 64
_CHARGED = "ON CONFLICT DO UPDATE SET cost = cost + excluded.cost"
CHARGE_CHANGE = (
    "INSERT INTO spend SELECT key_id, date(created, 'unixepoch'), ? - cost FROM calls "  # noqa: S608
    f"WHERE id = ? AND key_id IS NOT NULL {_CHARGED}"
)


def insert(connection: sqlite3.Connection, calls: Sequence[Call]) -> int:
    """Insert calls inside the caller's transaction; returns the ``seq`` of the first."""
    if not calls:
        return 0
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'calls'").fetchone()
    first = int(row[0]) + 1 if row else 1
    spend: dict[tuple[str, str], float] = {}
    for start in range(0, len(calls), ROWS_PER_STATEMENT):
        group = calls[start : start + ROWS_PER_STATEMENT]
        rows: list[Any] = []
        bodies: list[Any] = []
        for seq, call in enumerate(group, first + start):
            rows += _row_of(call, seq)
            bodies += (seq, call.request, call.reply)
            if call.key_id is not None and call.cost:
                key = call.key_id, day_of(call.created)
                spend[key] = spend.get(key, 0.0) + call.cost
        # One statement for many rows: each step of a statement lets go of the interpreter lock and must win it back.
        connection.execute(_insert_statement("calls", len(COLUMNS), len(group)), rows)
        connection.execute(_insert_statement("bodies", 3, len(group)), bodies)
    for (key_id, day), cost in spend.items():
        connection.execute(f"INSERT INTO spend VALUES (?, ?, ?) {_CHARGED}", (key_id, day, cost))  # noqa: S608
    return first


def _row_of(call: Call, seq: int | None) -> tuple[Any, ...]:
    """A call's columns, in the order of ``COLUMNS``."""
    return (
        seq,
        call.id,
        call.created,
        call.task,
        call.endpoint,
        call.model,
        call.status,
        call.answered_by,
        call.prediction,
        call.confidence,
        call.reason,
        call.audit,
        call.gold,
        call.latency,
        call.prompt_tokens,
        call.completion_tokens,
        call.cost,
        call.key_id,
        call.stream,
        call.complete,
        call.sampled,
        call.reply_id,
    )


def day_of(created: float) -> str:
    """The day of a moment, by UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(created))


def _insert_statement(table: str, n_columns: int, n_rows: int) -> str:
    statement = _statements.get((table, n_rows))
    if statement is None:
        row = f"({','.join('?' * n_columns)})"
        statement = _statements[table, n_rows] = f"INSERT INTO {table} VALUES {','.join([row] * n_rows)}"  # noqa: S608
    return statement


_statements: dict[tuple[str, int], str] = {}


def insert_new(connection: sqlite3.Connection, calls: Iterable[Call]) -> tuple[int, int]:
    """Insert the calls whose id is new, all or none; returns how many were new and how many were not."""
    # Gathered in a temporary table first: the log is locked only for the copy.
    names = ", ".join((*COLUMNS, "request", "reply"))
    connection.execute(f"CREATE TEMP TABLE incoming ({names})")
    marks = ",".join("?" * (len(COLUMNS) + 2))
    connection.execute("BEGIN")
    n_given = 0
    for call in calls:
        values = (*_row_of(call, None), call.request, call.reply)
        connection.execute(f"INSERT INTO incoming VALUES ({marks})", values)  # noqa: S608
        n_given += 1
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "DELETE FROM incoming WHERE id IN (SELECT id FROM calls) "
            "OR rowid NOT IN (SELECT MIN(rowid) FROM incoming GROUP BY id)"
        )
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'calls'").fetchone()
        offset = int(row[0]) if row else 0
        rest = ", ".join(COLUMNS[1:])
        numbered = "(SELECT *, ROW_NUMBER() OVER (ORDER BY rowid) AS n FROM incoming) ORDER BY n"
        n_new = connection.execute(
            f"INSERT INTO calls (seq, {rest}) SELECT ? + n, {rest} FROM {numbered}",  # noqa: S608
            (offset,),
        ).rowcount
        connection.execute(f"INSERT INTO bodies SELECT ? + n, request, reply FROM {numbered}", (offset,))  # noqa: S608
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return n_new, n_given - n_new


def conditions(
    task: str | None, since: float | None, until: float | None, answered_by: str | None
) -> tuple[list[str], list[Any]]:
    """The conditions of a query for calls, and their values; ``student`` stands for every version of it."""
    clauses: list[str] = []
    values: list[Any] = []
    for clause, value in (("c.task = ?", task), ("c.created >= ?", since), ("c.created < ?", until)):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    if answered_by == "student":
        clauses.append("c.answered_by LIKE 'student:%'")
    elif answered_by is not None:
        clauses.append("c.answered_by = ?")
        values.append(answered_by)
    return clauses, values


def call_of(row: Sequence[Any]) -> Call:
    """Make the call of a row: its columns, then the two bodies."""
    fields = dict(zip(COLUMNS, row[:-2], strict=True))
    fields["stream"] = bool(fields["stream"])
    fields["complete"] = bool(fields["complete"])
    fields["sampled"] = bool(fields["sampled"])
    return Call(request=row[-2], reply=row[-1], **fields)
