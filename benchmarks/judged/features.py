"""What small metrics say of outputs with references, in columns, and a line learned from other systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.scorers.bertscore import BertScore
from pilotfish.scorers.passages import content_words, missing_facts
from pilotfish.scorers.reference import Bleu, Chrf, Rouge
from pilotfish.types import Exchange, Reply, Request

__all__ = ["NAMES", "columns", "exchange", "ridge_by_fold", "source_columns"]

Array = NDArray[np.float64]
NAMES = ["bertscore", "precision", "recall", "chrF", "BLEU", "ROUGE-L", "sentence", "length", "words"]


def exchange(text: str, references: Sequence[str], context: str = "") -> Exchange:
    return Exchange(Request.of("Write it."), Reply(text), tuple(references), (), (context,) if context else ())


def columns(items: Sequence[Exchange]) -> Array:
    """Scores of every small metric, (n, n_metrics), as named in ``NAMES``."""
    score = BertScore(precision="int8", max_length=256)
    f1 = score.score(items)
    texts = list(dict.fromkeys(t for e in items for t in (e.reply.text, e.references[0])))
    vectors = dict(zip(texts, OnnxEmbedder(precision="int8").embed(texts), strict=True))
    near = [float(vectors[e.reply.text] @ vectors[e.references[0]]) for e in items]
    ratio = [np.log((len(e.reply.text) + 1) / (len(e.references[0]) + 1)) for e in items]
    words = [_words(e.reply.text, e.references[0]) for e in items]
    lexical = [metric.score(items) for metric in (Chrf(), Bleu(), Rouge())]
    detail = score.detail_
    made = [f1, detail["precision"], detail["recall"], *lexical, near, -np.abs(ratio), words]
    return np.column_stack(made)


def source_columns(items: Sequence[Exchange]) -> Array:
    """How an output stands to its source: overlap, missing facts, nearness, repetition, (n, 5)."""
    texts = list(dict.fromkeys(t for e in items for t in (e.reply.text, e.context[0])))
    vectors = dict(zip(texts, OnnxEmbedder(precision="int8").embed(texts), strict=True))
    rows = []
    for e in items:
        own, source = content_words(e.reply.text), content_words(e.context[0])
        known, two = set(source), set(pairwise(source))
        pairs = list(pairwise(own))
        rows.append(
            [
                np.mean([w in known for w in own]) if own else 0.0,
                np.mean([p in two for p in pairs]) if pairs else 0.0,
                -float(len(missing_facts(e.reply.text, e.context))),
                float(vectors[e.reply.text] @ vectors[e.context[0]]),
                -len(own) / max(1, len(set(own))),
            ]
        )
    return np.array(rows)


def _words(text: str, reference: str) -> float:
    own, other = set(content_words(text)), set(content_words(reference))
    return 2 * len(own & other) / max(1, len(own) + len(other))


def ridge_by_fold(x: Array, human: Array, folds: NDArray[np.int64]) -> Array:
    """Predictions of a line learned on the other folds; columns as (n_segments, n_systems, d), folds of systems.

    Every column is written so that more should be better: weights are at least 0, and drawn towards equal ones.
    """
    # The level of a segment says nothing of its systems: it is taken out.
    centred = x - x.mean(axis=1, keepdims=True)
    target = human - human.mean(axis=1, keepdims=True)
    out = np.empty(human.shape)
    for fold in np.unique(folds):
        learn = folds != fold
        best = max(_PENALTIES, key=lambda p: _inner(centred[:, learn], target[:, learn], folds[learn], p))
        out[:, ~learn] = _line(centred[:, learn], target[:, learn], best)(centred[:, ~learn])
    return out


_PENALTIES = (0.1, 1.0, 10.0)


def _inner(x: Array, y: Array, folds: NDArray[np.int64], penalty: float) -> float:
    """Correlation of held-out predictions within the systems that may be learned from."""
    out = np.empty(y.shape)
    for fold in np.unique(folds):
        learn = folds != fold
        out[:, ~learn] = _line(x[:, learn], y[:, learn], penalty)(x[:, ~learn])
    return float(np.corrcoef(out.ravel(), y.ravel())[0, 1])


def _line(x: Array, y: Array, penalty: float) -> Callable[[Array], Array]:
    from scipy.optimize import nnls

    d = x.shape[-1]
    scale = x.reshape(-1, d).std(axis=0) + 1e-9
    rows, goal = x.reshape(-1, d) / scale, y.ravel() / (y.std() + 1e-9)
    mean = rows.mean(axis=1)
    equal = max(0.0, float(mean @ goal) / float(mean @ mean + 1e-9)) / d
    pull = np.sqrt(penalty * len(rows))
    weights = nnls(np.vstack([rows, pull * np.eye(d)]), np.concatenate([goal, np.full(d, pull * equal)]))[0]
    return lambda other: (other / scale) @ weights
