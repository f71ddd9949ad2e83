"""A student for tests: it knows the words it has seen, and is as sure of an answer as those words are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from pilotfish.traffic.tasks import normalise
from pilotfish.training.students import Predicted


class WordStudent:
    """Votes by words."""

    def __init__(self, features: str = "encoder") -> None:
        self.features = features
        self.votes_: dict[str, dict[str, int]] = {}
        self.told_ = ""

    @property
    def known(self) -> frozenset[str]:
        return frozenset(normalise(a) for votes in self.votes_.values() for a in votes)

    def fit(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        gold: Sequence[str | None] | None = None,
        drawn: Sequence[bool] | None = None,
        instruction: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        self.told_ = instruction
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for text, answer in zip(texts, answers, strict=True):
            for word in text.split():
                votes[word][answer] += 1
        self.votes_ = {word: dict(counts) for word, counts in votes.items()}
        return self

    def predict(self, texts: Sequence[str]) -> Predicted:
        labels, confidence, familiar = [], [], []
        answers = sorted({a for votes in self.votes_.values() for a in votes})
        for text in texts:
            known = [self.votes_[word] for word in text.split() if word in self.votes_]
            odds = dict.fromkeys(answers, 1.0)
            for votes in known:
                odds = {a: o * (votes.get(a, 0) / sum(votes.values()) + 0.01) for a, o in odds.items()}
            best = max(odds, key=lambda a: (odds[a], a)) if known else ""
            labels.append(best)
            confidence.append(odds[best] / sum(odds.values()) if known else 0.0)
            familiar.append(bool(known))
        return Predicted(labels, np.array(confidence), np.array(familiar))

    def save(self, folder: Path) -> None:
        (folder / "votes.json").write_text(json.dumps(self.votes_, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Self:
        made = cls()
        made.votes_ = json.loads((folder / "votes.json").read_text())
        return made
