"""Counts of a run: what came in, what each step and rule dropped, with a few examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilotfish.curation.documents import Document, Rejected
from pilotfish.curation.steps import Fate

__all__ = ["N_EXAMPLES", "Tally"]

N_EXAMPLES = 3
_EXAMPLE = 400


@dataclass
class Tally:
    """What happened to the documents of a run.

    Parameters
    ----------
    n_in, n_out, characters_in, characters_out : int
        Documents and characters read and kept.
    dropped : dict
        By step and rule: number of documents and characters.
    rejected : dict
        By reason: number of records that are no documents.
    examples : dict
        By step and rule: the first few dropped documents; of what was kept under ``kept``.
    """

    n_in: int = 0
    n_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def read(self, documents: Sequence[Document]) -> None:
        """Count documents that came in."""
        self.n_in += len(documents)
        self.characters_in += sum(len(d.text) for d in documents)

    def keep(self, documents: Sequence[Document], n: int = -1, characters: int = 0) -> None:
        """Count documents that stay; where the first alone are given, with their number and that of characters."""
        self.n_out += len(documents) if n < 0 else n
        self.characters_out += sum(len(d.text) for d in documents) if n < 0 else characters
        for document in documents[: N_EXAMPLES - len(self.examples.get("kept", ()))]:
            self._show("kept", document.id, document.text, None)

    def drop(self, fates: Sequence[Fate]) -> None:
        """Count documents that a step dropped."""
        for document, step, rule, score in fates:
            count = self.dropped.setdefault(step, {}).setdefault(rule, [0, 0])
            count[0] += 1
            count[1] += len(document.text)
            self._show(f"{step}: {rule}", document.id, document.text, score)

    def reject(self, found: Rejected) -> None:
        """Count a record that is no document."""
        self.rejected[found.reason] = self.rejected.get(found.reason, 0) + 1
        self._show(f"rejected: {found.reason}", found.where, found.start, None)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the counts of another part of the run, as :meth:`to_json` gave them."""
        for name in ("n_in", "n_out", "characters_in", "characters_out"):
            setattr(self, name, getattr(self, name) + other[name])
        for step, rules in other["dropped"].items():
            for rule, (n, size) in rules.items():
                count = self.dropped.setdefault(step, {}).setdefault(rule, [0, 0])
                count[0] += n
                count[1] += size
        for reason, n in other["rejected"].items():
            self.rejected[reason] = self.rejected.get(reason, 0) + n
        for title, shown in other["examples"].items():
            have = self.examples.setdefault(title, [])
            have += shown[: N_EXAMPLES - len(have)]

    def sort(self, steps: Sequence[str]) -> None:
        """Put what was dropped, and the examples of it, in the order of the steps by their names.

        Documents come in batches, of which the first may lose none to the first step.
        """
        place = {name: i for i, name in reversed(list(enumerate(steps)))}
        self.dropped = dict(sorted(self.dropped.items(), key=lambda item: place.get(item[0], len(place))))

    def to_json(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "n_in": self.n_in,
            "n_out": self.n_out,
            "characters_in": self.characters_in,
            "characters_out": self.characters_out,
            "dropped": self.dropped,
            "rejected": self.rejected,
            "examples": self.examples,
        }

    def _show(self, title: str, name: str, text: str, score: float | None) -> None:
        have = self.examples.setdefault(title, [])
        if len(have) < N_EXAMPLES:
            # JSON has no infinity: that of an empty text's perplexity, and of a share of nothing.
            scored = {} if score is None or not math.isfinite(score) else {"score": round(score, 4)}
            have.append({"id": name, "text": text[:_EXAMPLE], **scored})
