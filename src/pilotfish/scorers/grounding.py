"""Is every sentence of an answer supported by its context: rules for facts first, then overlap, then entailment."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import read_arrays, write_arrays
from pilotfish.protocols import FloatArray
from pilotfish.scorers.entailment import Entailment
from pilotfish.scorers.passages import Support, content_words, facts, known_facts, sentences, unknown_facts, windows
from pilotfish.types import Exchange

__all__ = ["Grounding", "Support"]

_N_WINDOWS = 2


class Grounding:
    """Support of an answer by its context, in [0, 1]: NaN without a context, or without a sentence.

    Each sentence is described by the share of its facts that the context has, by the words and pairs of words it shares
    with its best window of the context, and by the entailment of it from the windows it shares most with. The default
    joins these by fixed weights; :meth:`fit` learns them from labelled answers.

    Parameters
    ----------
    entailment : Entailment, optional
        Says what follows; without one the rules and the overlap decide.

    Attributes
    ----------
    detail_ : list of list of Support
        The sentences of each answer of the last call.

    References
    ----------
    Laban et al. 2022 (SummaC, arXiv:2111.09525), section 3: sentence pairs, best over the context.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> context = ("The Porto bridge was built in 1886 and has one arch.",)
    >>> answers = [Reply("The bridge was built in 1886."), Reply("The bridge was built in 1930 by monks.")]
    >>> found = Grounding().score([Exchange(Request.of("When?"), a, context=context) for a in answers])
    >>> bool(found[0] > found[1])
    True
    """

    def __init__(self, entailment: Entailment | None = None) -> None:
        self.entailment = entailment

    def fit(self, items: Sequence[Exchange], labels: FloatArray) -> Self:
        """Learn the weights from answers with context and whether each is supported, 1 or 0."""
        from sklearn.linear_model import LogisticRegression

        y = np.asarray(labels, dtype=np.float64)
        rows = [self._rows(item)[0] for item in items]
        kept = [i for i, row in enumerate(rows) if len(row)]
        if len(items) != y.size or len(set(y[kept].tolist())) < 2:
            raise InputError(f"{len(kept)} answers with a context, {y.size} labels: give both kinds.")
        x = np.array([_joined(rows[i]) for i in kept])
        self.mean_, self.scale_ = x.mean(axis=0), x.std(axis=0) + 1e-9
        line = LogisticRegression(C=0.3, max_iter=500).fit((x - self.mean_) / self.scale_, y[kept])
        self.weights_, self.intercept_ = line.coef_[0], float(line.intercept_[0])
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Support of each answer, (n,); that of its sentences is in ``detail_``."""
        self.detail_ = []
        out = np.full(len(items), np.nan)
        for i, item in enumerate(items):
            rows, spans, missing = self._rows(item)
            own = _default(rows)
            self.detail_.append(
                [Support(a, b, float(s), tuple(m)) for (a, b), s, m in zip(spans, own, missing, strict=True)]
            )
            if len(rows):
                out[i] = float((own.mean() + own.min()) / 2)
                if hasattr(self, "weights_"):
                    z = (_joined(rows) - self.mean_) / self.scale_ @ self.weights_ + self.intercept_
                    out[i] = 1 / (1 + math.exp(-float(z)))
        return out

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("Grounding was saved before fit: call fit(items, labels) first.")
        intercept = np.array(self.intercept_)
        return {"mean": self.mean_, "scale": self.scale_, "weights": self.weights_, "intercept": intercept}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], entailment: Entailment | None = None) -> Grounding:
        """Read what :meth:`to_arrays` wrote; the entailment model it was learned with is given again."""
        made = cls(entailment)
        made.mean_, made.scale_, made.weights_ = arrays["mean"], arrays["scale"], arrays["weights"]
        made.intercept_ = float(arrays["intercept"])
        return made

    def save(self, path: str | Path) -> None:
        """Save what was learned as an npz archive, without pickle; the entailment model is not part of it."""
        write_arrays(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | Path, entailment: Entailment | None = None) -> Grounding:
        """Load what :meth:`save` wrote; the entailment model it was learned with is given again.

        Raises
        ------
        InputError
            When the file is something else.
        """
        with read_arrays(path, cls.__name__) as file:
            return cls.from_arrays({name: file[name] for name in file}, entailment)

    def _rows(self, item: Exchange) -> tuple[FloatArray, list[tuple[int, int]], list[list[str]]]:
        """What is seen of each sentence, (n_sentences, 5), the sentences' places and their missing facts."""
        spans = sentences(item.reply.text)
        pieces = [w for text in item.context for w in windows(text)]
        if not spans or not pieces:
            return np.empty((0, 5)), [], []
        bags = [content_words(w) for w in pieces]
        sets = [set(bag) for bag in bags]
        pairs = [set(pairwise(bag)) for bag in bags]
        known = known_facts(item.context)
        whole, whole_pairs = set().union(*sets), set().union(*pairs)
        rows, missing, asked, owner = [], [], [], []
        for k, (a, b) in enumerate(spans):
            text = item.reply.text[a:b]
            words = content_words(text)
            two = list(pairwise(words))
            absent = unknown_facts(text, known)
            overlap = np.array([_share(words, s) + _share(two, p) for s, p in zip(sets, pairs, strict=True)])
            rows.append(
                [len(absent) / max(1, len(facts(text))), _share(words, whole), _share(two, whole_pairs), 0.5, 0.0]
            )
            missing.append(absent)
            for at in np.argsort(-overlap, kind="stable")[:_N_WINDOWS]:
                asked.append((pieces[int(at)], text))
                owner.append(k)
        table = np.array(rows)
        if self.entailment is not None:
            p = self.entailment.probabilities(asked)
            for k in range(len(spans)):
                own = p[np.array(owner) == k]
                table[k, 3], table[k, 4] = own[:, 0].max(), own[:, 2].min()
        return table, spans, missing


def _share(found: Sequence[object], known: Collection[object]) -> float:
    return sum(x in known for x in found) / len(found) if found else 1.0


def _default(rows: FloatArray) -> FloatArray:
    """Support of each sentence by fixed weights: overlap and entailment, halved at least where a fact is missing."""
    if not len(rows):
        return np.empty(0)
    soft = 0.25 * rows[:, 1] + 0.25 * rows[:, 2] + 0.5 * rows[:, 3]
    return np.asarray(soft * np.where(rows[:, 0] > 0, 0.5 * (1 - rows[:, 0] / 2), 1.0) * (1 - 0.5 * rows[:, 4]))


def _joined(rows: FloatArray) -> FloatArray:
    """The least favourable and the mean sentence."""
    worst = np.concatenate([rows[:, :1].max(axis=0), rows[:, 1:4].min(axis=0), rows[:, 4:].max(axis=0)])
    return np.concatenate([rows.mean(axis=0), worst])
