"""A small classifier, learned from the table's own answers, in front of a large model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from pilotfish.answers import normalise
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, Model
from pilotfish.route.policies import Choices
from pilotfish.route.seen import Seen
from pilotfish.traffic.table import ReplyTable

__all__ = ["Head", "HeadPolicy", "right_answers"]

_MOST_LABELS = 0.2


class Head(Model, Protocol):
    """A classifier that answers labels, and states with each how sure it is."""

    def fit(self, texts: Sequence[str], labels: Sequence[str], large: Sequence[str]) -> Self:
        """Learn from texts, their labels, and what the large model answers to them."""
        ...

    def predict(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Label each text and give the confidence, (n,), in [0, 1]."""
        ...


def right_answers(table: ReplyTable) -> dict[int, str]:
    """The first recorded reply of score 1 to each query that has one, by the query's row.

    Raises
    ------
    InputError
        When there is none, or replies are no labels: more than a fifth as many of them as queries.

    Examples
    --------
    >>> table = ReplyTable.of(list("abcdefghij"), {"m": [1] * 10}, {"m": 1.0}, replies={"m": ["yes", "no"] * 5})
    >>> right_answers(table)[1]
    'no'
    """
    if not table.replies:
        raise InputError("The table has no recorded replies: a head learns labels from the right ones, so record them.")
    found: dict[int, str] = {}
    for i, (scores, replies) in enumerate(zip(table.scores, table.replies, strict=True)):
        right = [reply for score, reply in zip(scores, replies, strict=True) if score >= 1 and reply is not None]
        if right:
            found[i] = normalise(right[0])
    if not found:
        raise InputError("No reply in the table has score 1: record some right answers to learn labels from.")
    n_labels = len(set(found.values()))
    if n_labels > max(2.0, _MOST_LABELS * len(found)):
        raise InputError(
            f"{len(found)} right answers hold {n_labels} different ones: a head answers by label, so give a table of "
            "calls that are answered by one of a few labels."
        )
    return found


@dataclass
class HeadPolicy:
    """A classifier trained on the table answers what it is sure of, for nothing; the large model answers the rest.

    Its answers have no column in the table: each scores what the same answer of a recorded model scored on that query,
    and 0 where no model gave it.

    Parameters
    ----------
    name : str
        Shown in reports.
    head : Head
        Fitted by ``fit`` on the right answers of the table and what the large model said.
    large : str
        The model that answers the rest.
    n_settings : int
        Most points of the curve.
    """

    name: str
    head: Head
    large: str
    n_settings: int = 40
    seen: Seen = field(default_factory=Seen, repr=False)

    def fit(self, table: ReplyTable) -> Self:
        """Train the head.

        Raises
        ------
        InputError
            When the table's right answers are no labels.
        """
        self.seen = Seen()
        labels, column = right_answers(table), table.column(self.large)
        said = [normalise(table.replies[i][column] or "") for i in labels]
        self.head.fit([table.queries[i] for i in labels], list(labels.values()), said)
        return self

    def _predicted(self, table: ReplyTable) -> tuple[list[str], FloatArray]:
        found: tuple[list[str], FloatArray] = self.seen.of(table, lambda: self.head.predict(table.queries))
        return found

    def settings(self, table: ReplyTable) -> list[Any]:
        """Thresholds at quantiles of the confidence, from all by the head to all by the large model."""
        at = np.unique(np.quantile(self._predicted(table)[1], np.linspace(0, 1, self.n_settings)))
        return [float("-inf"), *at.tolist(), float("inf")]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Answer by the head, or ask the large model."""
        labels, sure = self._predicted(table)
        column = table.column(self.large)
        goes_on = sure < setting
        tried = np.zeros((table.n_queries, table.n_models), dtype=bool)
        tried[goes_on, column] = True
        return Choices(np.where(goes_on, column, -1), tried, np.zeros(table.n_queries), tuple(labels))
