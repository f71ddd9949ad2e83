"""A student for tests: it knows the words it has seen, and is as sure of an answer as those words are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from pilotfish.traffic.tasks import normalise
from pilotfish.training.students import Predicted


class WordStudent:
    """Votes by words."""

    def __init__(self) -> None:
        self.votes_: dict[str, dict[str, int]] = {}

    @property
    def known(self) -> frozenset[str]:
        return frozenset(normalise(a) for votes in self.votes_.values() for a in votes)

    def fit(self, texts: Sequence[str], answers: Sequence[str], gold: Sequence[str | None] | None = None) -> Self:
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for text, answer in zip(texts, answers, strict=True):
            for word in text.split():
                votes[word][answer] += 1
        self.votes_ = {word: dict(counts) for word, counts in votes.items()}
        return self

    def predict(self, texts: Sequence[str]) -> Predicted:
        labels, confidence, familiar = [], [], []
        for text in texts:
            total: Counter[str] = Counter()
            for word in text.split():
                votes = self.votes_.get(word, {})
                n = sum(votes.values())
                total.update({a: v / n for a, v in votes.items()})  # type: ignore[misc]
            best = max(total, key=lambda a: (total[a], a)) if total else ""
            labels.append(best)
            confidence.append(total[best] / sum(total.values()) if total else 0.0)
            familiar.append(bool(total))
        return Predicted(labels, np.array(confidence), np.array(familiar))

    def save(self, folder: Path) -> None:
        (folder / "votes.json").write_text(json.dumps(self.votes_, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Self:
        made = cls()
        made.votes_ = json.loads((folder / "votes.json").read_text())
        return made
