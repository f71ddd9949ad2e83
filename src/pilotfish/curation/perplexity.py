"""Scores of a text by what a model expects: perplexity, and the length of the error vector (EL2N)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, WhiteBoxModel
from pilotfish.types import TokenLogProb

__all__ = ["ErrorLength", "LogProbModel", "LogProbsModel", "Perplexity", "el2n", "thirds"]

# Tokens whose distributions are held at a time: each is as long as the vocabulary.
_AT_A_TIME = 64


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
    # An empty text has no score that a number could stand for.
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        raise InputError("There are no scores to cut into thirds: give at least one text that has a score.")
    low, high = np.quantile(scores, [1 / 3, 2 / 3])
    return float(low), float(high)


def el2n(probabilities: NDArray[Any], targets: Sequence[int] | NDArray[Any]) -> FloatArray:
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
    errors = np.array(probabilities[None] if probabilities.ndim == 2 else probabilities)
    errors[:, np.arange(errors.shape[1]), np.asarray(targets)] -= 1
    return np.asarray(np.linalg.norm(errors, axis=2).mean(axis=0), dtype=np.float64)


class ErrorLength:
    """Mean length of the error vector of a text's tokens, given those before them (EL2N).

    Parameters
    ----------
    models : sequence of WhiteBoxModel
        Language models early in training or small, such as ``NGramModel`` or ``TransformersModel``; their lengths are
        averaged.
    longest : int
        Characters of each text that are read.

    References
    ----------
    Marion 2023 (arXiv:2309.04564), section 3.2; Paul 2021 (arXiv:2107.07075).

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> scores = ErrorLength([NGramModel(2).fit(["the fish swims", "the fish eats"])]).score(["the fish", "fish the"])
    >>> bool(scores[0] < scores[1])
    True
    """

    def __init__(self, models: Sequence[WhiteBoxModel], longest: int = 1000) -> None:
        for model in models:
            if not hasattr(model, "session"):
                raise InputError(
                    f"EL2N needs the whole distribution, which {type(model).__name__} does not give: use another model."
                )
        self.models = models
        self.longest = longest

    def score(self, items: Sequence[str]) -> FloatArray:
        """Mean length over tokens, (n,), from 0 to the root of 2; lower is more expected.

        A text without a token that has one gets infinity.
        """
        return np.array(
            [np.mean([self._length(model, text[: self.longest]) for model in self.models]) for text in items]
        )

    def _length(self, model: WhiteBoxModel, text: str) -> float:
        tokens = model.tokenizer.encode(text)[: model.window]
        session = model.session()
        lengths = [
            el2n(np.exp(session.extend(tokens[i:end]).log_probs()), tokens[i + 1 : end + 1])
            for i in range(0, len(tokens) - 1, _AT_A_TIME)
            for end in [min(i + _AT_A_TIME, len(tokens) - 1)]
        ]
        return float(np.concatenate(lengths).mean()) if lengths else np.inf
