"""Does a model say the same again: SelfCheckGPT and semantic entropy, from samples recorded with an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from pilotfish.errors import InputError
from pilotfish.models.ngram import NGramModel
from pilotfish.protocols import Embedder, FloatArray
from pilotfish.scorers.answers import final_answer
from pilotfish.scorers.entailment import Entailment
from pilotfish.scorers.passages import UNSPACED, Support, sentences
from pilotfish.types import Exchange

__all__ = ["SelfCheck", "SemanticEntropy", "clusters"]

_N_ASKED = 450
_LETTER = re.compile(rf"[{UNSPACED}]")


class SelfCheck:
    """How well the samples recorded with an answer support its sentences; NaN without samples or text.

    Without parts an n-gram model of the samples and the answer says how usual its least usual token is, by its
    log-probability. With an embedder it is the mean over samples of the greatest cosine with one of their sentences.
    With an entailment model it is one minus the share of contradiction against entailment, over the samples; with one
    of two labels, the probability that it follows.

    Parameters
    ----------
    embedder : Embedder, optional
        Compares sentences.
    entailment : Entailment, optional
        Says what contradicts what; used before the embedder.
    order : int
        Length of the n-grams.

    Attributes
    ----------
    detail_ : list of list of Support
        The sentences of each answer of the last call.

    References
    ----------
    Manakul et al. 2023 (arXiv:2303.08896), section 5.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> said = (Reply("It lies in Peru."), Reply("It lies in Peru."))
    >>> asked = Request.of("Where is Lima?")
    >>> good, bad = SelfCheck().score([Exchange(asked, Reply(t), samples=said) for t in ("In Peru.", "In Oslo.")])
    >>> bool(good > bad)
    True
    """

    def __init__(self, embedder: Embedder | None = None, entailment: Entailment | None = None, order: int = 1) -> None:
        self.embedder = embedder
        self.entailment = entailment
        self.order = order

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Mean support of the sentences of each answer, (n,), higher is better."""
        self.detail_ = [self._sentences(item) for item in items]
        return np.array([float(np.mean([s.support for s in row])) if row else math.nan for row in self.detail_])

    def _sentences(self, item: Exchange) -> list[Support]:
        spans = sentences(item.reply.text)
        samples = [s.text for s in item.samples if s.text.strip()]
        if not spans or not samples:
            return []
        texts = [item.reply.text[a:b] for a, b in spans]
        if self.entailment is not None:
            p = self.entailment.probabilities([(sample, text) for text in texts for sample in samples])
            # A model of two labels knows no contradiction: what does not follow counts as one.
            against = p[:, 2] / np.maximum(p[:, 0] + p[:, 2], 1e-9) if p[:, 2].any() else 1 - p[:, 0]
            support = 1 - against.reshape(len(texts), len(samples)).mean(axis=1)
        elif self.embedder is not None:
            support = self._by_vectors(texts, samples)
        else:
            model = NGramModel(order=self.order).fit([_spaced(text) for text in (*samples, item.reply.text)])
            support = np.array([float(model.log_prob(_spaced(text)).min()) for text in texts])
        return [Support(a, b, float(s)) for (a, b), s in zip(spans, support, strict=True)]

    def _by_vectors(self, texts: Sequence[str], samples: Sequence[str]) -> FloatArray:
        split = [[sample[a:b] for a, b in sentences(sample)] for sample in samples]
        flat = [*texts, *(s for row in split for s in row)]
        vectors = self.embedder.embed(flat) if self.embedder is not None else np.empty((0, 0))
        own, rest = vectors[: len(texts)], vectors[len(texts) :]
        best, start = [], 0
        for row in split:
            best.append((own @ rest[start : start + len(row)].T).max(axis=1))
            start += len(row)
        return np.asarray(np.mean(best, axis=0), dtype=np.float64)


def _spaced(text: str) -> str:
    """The text with each letter of a script without spaces as a word: a whole clause would be one token."""
    return _LETTER.sub(r" \g<0> ", text)


def _after(question: str, text: str) -> str:
    """A text after the end of its question, short enough for two of them in the window of a small model."""
    room = max(0, _N_ASKED - len(text))
    return f"{question[len(question) - min(room, len(question)) :]} {text}".strip()[-2 * _N_ASKED :]


def clusters(n: int, same: Callable[[int, int], bool]) -> list[int]:
    """Number of each item's cluster: it joins the first whose first member is the same.

    Examples
    --------
    >>> clusters(4, lambda i, j: i % 2 == j % 2)
    [0, 1, 0, 1]
    """
    firsts: list[int] = []
    found = []
    for i in range(n):
        at = next((k for k, first in enumerate(firsts) if same(first, i)), len(firsts))
        if at == len(firsts):
            firsts.append(i)
        found.append(at)
    return found


class SemanticEntropy:
    """Minus the entropy, in nats, over the meanings of an answer and its samples: 0 where all say the same.

    Two texts mean the same where each follows from the other after the question (entailment), where their vectors are
    near (embedder), or else where their final answers are equal. NaN without samples.

    Parameters
    ----------
    entailment : Entailment, optional
        Says what follows; a text follows where that is likelier than not.
    embedder : Embedder, optional
        Used where there is no entailment model.
    threshold : float
        Least cosine of texts that mean the same.
    weights : {"discrete", "likelihood", "rank"}
        Whether samples count equally, by their mean token probability, or by one over their rank in it; samples without
        stored log-probabilities count equally.

    Attributes
    ----------
    detail_ : list of list of int
        Cluster of the answer and of each sample, of the last call.

    References
    ----------
    Kuhn et al. 2023 (arXiv:2302.09664), section 3; Farquhar et al. 2024 for the discrete form.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> samples = (Reply("4"), Reply("It is 4."), Reply("5"))
    >>> SemanticEntropy().score([Exchange(Request.of("2 + 2?"), Reply("4"), samples=samples)]).round(3)
    array([-0.562])
    """

    def __init__(
        self,
        entailment: Entailment | None = None,
        embedder: Embedder | None = None,
        *,
        threshold: float = 0.85,
        weights: str = "discrete",
    ) -> None:
        self.entailment = entailment
        self.embedder = embedder
        self.threshold = threshold
        self.weights = weights

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Minus the entropy of each answer's meanings, (n,), at most 0."""
        if self.weights not in ("discrete", "likelihood", "rank"):
            raise InputError(f"SemanticEntropy weights is {self.weights!r}: use discrete, likelihood or rank.")
        self.detail_ = [self._clusters(item) if item.samples else [] for item in items]
        return np.array(
            [self._entropy(item, row) if row else math.nan for item, row in zip(items, self.detail_, strict=True)]
        )

    def _clusters(self, item: Exchange) -> list[int]:
        texts = [item.reply.text, *(s.text for s in item.samples)]
        different = list(dict.fromkeys(t.strip() for t in texts))
        if self.entailment is not None and len(different) > 1:
            asked = [_after(item.request.prompt, t) for t in different]
            pairs = [(i, j) for i in range(len(asked)) for j in range(len(asked)) if i != j]
            p = self.entailment.probabilities([(asked[i], asked[j]) for i, j in pairs])[:, 0]
            follows = {pair for pair, chance in zip(pairs, p, strict=True) if chance > 0.5}
            found = clusters(len(different), lambda i, j: (i, j) in follows and (j, i) in follows)
        elif self.embedder is not None:
            vectors = self.embedder.embed(different)
            similar = vectors @ vectors.T
            found = clusters(len(different), lambda i, j: bool(similar[i, j] >= self.threshold))
        else:
            answers = [final_answer(t) for t in different]
            found = clusters(len(different), lambda i, j: answers[i] == answers[j])
        number = dict(zip(different, found, strict=True))
        return [number[t.strip()] for t in texts]

    def _entropy(self, item: Exchange, row: Sequence[int]) -> float:
        replies = [item.reply, *item.samples]
        weights = np.ones(len(replies))
        if self.weights != "discrete" and all(r.log_probs for r in replies):
            means = np.array([np.mean([t.log_prob for t in r.log_probs]) for r in replies])
            ranks = np.argsort(np.argsort(-means, kind="stable"), kind="stable") + 1
            weights = np.exp(means - means.max()) if self.weights == "likelihood" else 1 / ranks
        p = np.bincount(row, weights=weights)
        p = p[p > 0] / p.sum()
        return float((p * np.log(p)).sum())
