"""Scores of a text by what a model expects: perplexity, and the error vector of a model early in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray
from pilotfish.types import TokenLogProb

__all__ = ["LogProbModel", "LogProbsModel", "Perplexity", "el2n", "thirds"]


class LogProbModel(Protocol):
    """Anything that gives a natural log-probability to each token of a text."""

    def log_prob(self, text: str) -> FloatArray:
        """Log-probability of each token, (n_tokens,)."""
        ...


class LogProbsModel(Protocol):
    """A language model that gives each token of many texts a natural log-probability, such as one of transformers."""

    def log_probs(self, texts: Sequence[str]) -> Sequence[Sequence[TokenLogProb]]:
        """Log-probability of each token of each text, given those before it."""
        ...


class Perplexity:
    """Negative logarithm of the perplexity of a text under a model: the mean log-probability of a token, in nats.

    Parameters
    ----------
    model : LogProbModel or LogProbsModel
        Such as ``NGramModel``, ``ArpaModel`` or ``TransformersModel``.
    longest : int
        Characters of each text that are read.

    References
    ----------
    Wenzek 2020 (CCNet, arXiv:1911.00359), section 3; Marion 2023 (arXiv:2309.04564).

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> scores = Perplexity(NGramModel(2).fit(["the fish swims", "the fish eats"])).score(["the fish", "fish the"])
    >>> bool(scores[0] > scores[1])
    True
    """

    def __init__(self, model: LogProbModel | LogProbsModel, longest: int = 5000) -> None:
        self.model = model
        self.longest = longest

    def score(self, items: Sequence[str]) -> FloatArray:
        """Mean log-probability of a token of each text, (n,), in nats; higher is more expected.

        A text without a token that has one gets minus infinity.
        """
        texts = [text[: self.longest] for text in items]
        if hasattr(self.model, "log_probs"):
            rows = [np.array([token.log_prob for token in tokens]) for tokens in self.model.log_probs(texts)]
        else:
            rows = [self.model.log_prob(text) for text in texts]
        return np.array([float(row.mean()) if row.size else -np.inf for row in rows])


def thirds(scores: FloatArray) -> tuple[float, float]:
    """The two scores that cut a sample into tail, middle and head.

    Examples
    --------
    >>> thirds(np.arange(10.0))
    (3.0, 6.0)
    """
    if not scores.size:
        raise InputError("There are no scores to cut into thirds: give at least one.")
    low, high = np.quantile(scores, [1 / 3, 2 / 3])
    return float(low), float(high)


def el2n(probabilities: FloatArray, targets: Sequence[int]) -> FloatArray:
    """Length of the error vector of each example, averaged over models, (n,).

    Parameters
    ----------
    probabilities : ndarray, (n_models, n, n_classes) or (n, n_classes)
        What models early in training give each class.
    targets : sequence of int, (n,)
        The right class.

    References
    ----------
    Paul 2021 (arXiv:2107.07075), definition 2.2; Marion 2023 (arXiv:2309.04564) for text.

    Examples
    --------
    >>> el2n(np.array([[1.0, 0.0], [0.0, 1.0]]), [0, 0]).round(3)
    array([0.   , 1.414])
    """
    given = probabilities[None] if probabilities.ndim == 2 else probabilities
    right = np.eye(given.shape[2])[np.asarray(targets)]
    return np.asarray(np.linalg.norm(given - right, axis=2).mean(axis=0))
