"""What policies remember of the table they were last asked about, so that trying many settings scores it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilotfish.protocols import FloatArray
from pilotfish.traffic.table import ReplyTable

__all__ = ["Learned", "Seen"]


class Seen:
    """What a policy last worked out for a table, so that trying many settings scores its queries once."""

    def __init__(self) -> None:
        self.table: ReplyTable | None = None
        self.value: Any = None

    def of(self, table: ReplyTable, make: Callable[[], Any]) -> Any:
        """Give what was worked out for this very table, or work it out."""
        if self.table is not table:
            self.value, self.table = make(), table
        return self.value


class Learned:
    """What cascades of the same models in several orders share: whose answers were learned from, and their scores."""

    def __init__(self) -> None:
        self.fitted = Seen()
        self.scored = Seen()

    def fitted_on(self, table: ReplyTable) -> set[str]:
        """The models whose answers in this very table were learned from; those of another table are forgotten."""
        if self.fitted.table is not table:
            self.scored = Seen()
        found: set[str] = self.fitted.of(table, set)
        return found

    def scores(self, table: ReplyTable) -> dict[str, FloatArray]:
        """Scores of answers in this very table, by model."""
        found: dict[str, FloatArray] = self.scored.of(table, dict)
        return found
