"""What small metrics say of outputs with references, in columns, and a line learned from other systems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.scorers.bertscore import BertScore
from pilotfish.scorers.passages import content_words, missing_facts
from pilotfish.scorers.reference import Bleu, Chrf, Rouge
from pilotfish.types import Exchange, Reply, Request

__all__ = ["NAMES", "columns", "exchange", "pair_line", "ridge_by_fold", "source_columns"]

Array = NDArray[np.float64]
NAMES = ["bertscore", "precision", "recall", "middle layer", "chrF", "BLEU", "ROUGE-L", "sentence", "length", "words"]


def exchange(text: str, references: Sequence[str], context: str = "") -> Exchange:
    return Exchange(Request.of("Write it."), Reply(text), tuple(references), (), (context,) if context else ())


def columns(items: Sequence[Exchange]) -> Array:
    """Scores of every small metric, (n, n_metrics), as named in ``NAMES``."""
    score = BertScore(precision="int8", max_length=256)
    f1 = score.score(items)
    middle = BertScore(precision="int8", max_length=256, layer=4).score(items)
    texts = list(dict.fromkeys(t for e in items for t in (e.reply.text, e.references[0])))
    vectors = dict(zip(texts, OnnxEmbedder(precision="int8").embed(texts), strict=True))
    near = [float(vectors[e.reply.text] @ vectors[e.references[0]]) for e in items]
    ratio = [np.log((len(e.reply.text) + 1) / (len(e.references[0]) + 1)) for e in items]
    words = [_words(e.reply.text, e.references[0]) for e in items]
    lexical = [metric.score(items) for metric in (Chrf(), Bleu(), Rouge())]
    detail = score.detail_
    made = [f1, detail["precision"], detail["recall"], middle, *lexical, near, -np.abs(ratio), words]
    return np.column_stack(made)


def source_columns(items: Sequence[Exchange]) -> Array:
    """How an output stands to its source: overlap, missing facts, nearness, length, (n, 6)."""
    texts = list(dict.fromkeys(t for e in items for t in (e.reply.text, e.context[0])))
    vectors = dict(zip(texts, OnnxEmbedder(precision="int8").embed(texts), strict=True))
    rows = []
    for e in items:
        own, source = content_words(e.reply.text), content_words(e.context[0])
        known, two = set(source), set(zip(source, source[1:], strict=False))
        pairs = list(zip(own, own[1:], strict=False))
        rows.append(
            [
                np.mean([w in known for w in own]) if own else 0.0,
                np.mean([p in two for p in pairs]) if pairs else 0.0,
                -float(len(missing_facts(e.reply.text, e.context))),
                float(vectors[e.reply.text] @ vectors[e.context[0]]),
                np.log1p(len(e.reply.text)),
                -len(own) / max(1, len(set(own))),
            ]
        )
    return np.array(rows)


def _words(text: str, reference: str) -> float:
    own, other = set(content_words(text)), set(content_words(reference))
    return 2 * len(own & other) / max(1, len(own) + len(other))


def pair_line(better: Array, worse: Array) -> Array:
    """Weights of a logistic line through the difference of two outputs' columns."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([better - worse, worse - better])
    y = np.repeat([1, 0], len(better))
    scale = x.std(axis=0) + 1e-9
    line = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000).fit(x / scale, y)
    return np.asarray(line.coef_[0] / scale)


def ridge_by_fold(x: Array, human: Array, folds: NDArray[np.int64]) -> Array:
    """Predictions of a line learned on the other folds; columns as (n_segments, n_systems, d), folds of systems."""
    from sklearn.linear_model import RidgeCV

    out = np.empty(human.shape)
    for fold in np.unique(folds):
        learn, apply = folds != fold, folds == fold
        # The level of a segment says nothing of its systems: it is taken out before learning.
        centred = x[:, learn] - x[:, learn].mean(axis=1, keepdims=True)
        target = human[:, learn] - human[:, learn].mean(axis=1, keepdims=True)
        scale = centred.reshape(-1, x.shape[-1]).std(axis=0) + 1e-9
        line = RidgeCV(alphas=np.geomspace(1, 3000, 10), fit_intercept=False)
        line.fit(centred.reshape(-1, x.shape[-1]) / scale, target.ravel())
        out[:, apply] = (x[:, apply] / scale) @ line.coef_
    return out
