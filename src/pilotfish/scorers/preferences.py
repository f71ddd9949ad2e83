"""Quality learned from duels of models: Elo near a prompt, matrix factorisation, pairwise ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.scorers.answers import answer_form
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import checked_scores
from pilotfish.vectors import in_parts, unit_rows

__all__ = ["MatrixFactorisation", "PairRanker", "SimilarityElo", "battles", "bradley_terry"]

_MOST_COMPARED = 4


def battles(scores: FloatArray, ties: bool = True) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Turn scores (n, m) into duels: query, first model, second model, and 1, 0.5 or 0 for the first.

    Parameters
    ----------
    scores : ndarray (n, m)
        NaN where a model was not asked.
    ties : bool
        Whether equal scores make a duel of 0.5.

    Examples
    --------
    >>> [column.tolist() for column in battles(np.array([[1.0, 0.0], [1.0, 1.0]]))]
    [[0, 1], [0, 0], [1, 1], [1.0, 0.5]]
    """
    n_models = scores.shape[1]
    rows, first, second, won = [], [], [], []
    for a in range(n_models):
        for b in range(a + 1, n_models):
            difference = scores[:, a] - scores[:, b]
            kept = np.flatnonzero(np.isfinite(difference) & (ties | (difference != 0)))
            rows.append(kept)
            first.append(np.full(kept.size, a))
            second.append(np.full(kept.size, b))
            won.append(0.5 + 0.5 * np.sign(difference[kept]))
    order = np.argsort(np.concatenate(rows), kind="stable")
    joined = [np.concatenate(part)[order] for part in (rows, first, second)]
    return joined[0], joined[1], joined[2], np.concatenate(won)[order]


def bradley_terry(wins: FloatArray, prior: float = 1.0, n_steps: int = 60) -> FloatArray:
    """Log-strengths of m models from weighted wins, by the minorise-maximise iteration.

    Parameters
    ----------
    wins : ndarray (..., m, m)
        Weight of the duels that the row won against the column; a tie counts half to each.
    prior : float
        Wins and losses added against a model of average strength, which keeps strengths finite.
    n_steps : int
        Iterations.

    Returns
    -------
    ndarray (..., m)
        Natural log-strengths with mean 0.

    References
    ----------
    Hunter 2004, MM algorithms for generalized Bradley-Terry models.

    Examples
    --------
    >>> strengths = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0.0)
    >>> (strengths[0] - strengths[1]).round(4) == np.log(3).round(4)
    np.True_
    """
    played = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1) + prior
    strength = np.ones(won.shape)
    for _ in range(n_steps):
        pairs = played / (strength[..., :, None] + strength[..., None, :])
        strength = won / (pairs.sum(axis=-1) + 2 * prior / (strength + 1.0))
        strength /= np.exp(np.log(strength).mean(axis=-1, keepdims=True))
    return np.asarray(np.log(strength))


class SimilarityElo:
    """Bradley-Terry strengths from duels weighted by how near their prompts are to the one asked.

    A duel weighs ``base ** (1 + s)``, s being its prompt's cosine to the one asked over the largest such cosine.

    Parameters
    ----------
    base : float
        Weight of similarity; 10 in the paper.
    features : PromptFeatures, optional
        Describes prompts.
    prior : float
        See :func:`bradley_terry`, times the mean weight.

    References
    ----------
    Ong et al. 2024 (RouteLLM, arXiv:2406.18665), section 4.2, equations 8 and 9.
    """

    relative = True

    def __init__(self, base: float = 10.0, features: PromptFeatures | None = None, prior: float = 1.0) -> None:
        self.base = base
        self.features = features
        self.prior = prior

    def fit(
        self,
        prompts: Sequence[str],
        scores: FloatArray,
        models: Sequence[str],
        groups: Sequence[str] = (),  # noqa: ARG002
    ) -> Self:
        """Remember the duels of scores (n, m), NaN where a model was not asked."""
        y = checked_scores(prompts, scores, models)
        self.models_ = tuple(models)
        self.features_ = self.features or PromptFeatures()
        self.rows_ = unit_rows(self.features_.fit_transform(prompts))
        m = len(models)
        self.wins_ = np.zeros((len(prompts), m * m))
        query, a, b, won = battles(y)
        np.add.at(self.wins_, (query, a * m + b), won)
        np.add.at(self.wins_, (query, b * m + a), 1 - won)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Chance of each model to beat an average one on each prompt, (n, m), in [0, 1]."""
        if not hasattr(self, "wins_"):
            raise NotFittedError("SimilarityElo was used before fit: call fit(prompts, scores, models) first.")
        return in_parts(self._predicted, prompts, len(self.models_))

    def _predicted(self, prompts: Sequence[str]) -> FloatArray:
        similar = unit_rows(self.features_.transform(prompts)) @ self.rows_.T
        similar /= np.maximum(similar.max(axis=1, keepdims=True), 1e-12)
        weights = self.base ** (1 + similar)
        weights *= weights.shape[1] / weights.sum(axis=1, keepdims=True)
        m = len(self.models_)
        strengths = bradley_terry((weights @ self.wins_).reshape(len(prompts), m, m), self.prior)
        return np.asarray(1 / (1 + np.exp(-strengths)))


class MatrixFactorisation:
    """Score of a model on a prompt as a bilinear form, learned from duels: w2 . (v_m * (W1 q + b)).

    Parameters
    ----------
    n_factors : int
        Length of a model's vector v_m.
    penalty : float
        Weight of the squared parameters.
    n_steps, rate : int, float
        Adam steps over all duels, and their size.
    features : PromptFeatures, optional
        Describes prompts (q).
    seed : int
        Seed of the start.

    References
    ----------
    Ong et al. 2024 (RouteLLM, arXiv:2406.18665), section 4.2, equations 10 and 11.
    """

    relative = True

    def __init__(
        self,
        n_factors: int = 16,
        penalty: float = 1e-3,
        n_steps: int = 300,
        rate: float = 0.02,
        features: PromptFeatures | None = None,
        seed: int = 0,
    ) -> None:
        self.n_factors = n_factors
        self.penalty = penalty
        self.n_steps = n_steps
        self.rate = rate
        self.features = features
        self.seed = seed

    def fit(
        self,
        prompts: Sequence[str],
        scores: FloatArray,
        models: Sequence[str],
        groups: Sequence[str] = (),  # noqa: ARG002
    ) -> Self:
        """Learn from the duels of scores (n, m), NaN where a model was not asked."""
        y = checked_scores(prompts, scores, models)
        if len(models) < 2:
            raise InputError("MatrixFactorisation has one model only: give scores of at least two.")
        self.models_ = tuple(models)
        self.features_ = self.features or PromptFeatures()
        q = self.features_.fit_transform(prompts)
        duels = battles(y)
        rng = np.random.default_rng(self.seed)
        d = self.n_factors
        self.parameters_ = {
            "v": rng.normal(0, 0.3, (len(models), d)),
            "w1": rng.normal(0, 0.3, (q.shape[1], d)),
            "b": np.ones(d),
            "w2": rng.normal(0, 0.3, d),
        }
        first = {name: np.zeros_like(p) for name, p in self.parameters_.items()}
        second = {name: np.zeros_like(p) for name, p in self.parameters_.items()}
        for step in range(1, self.n_steps + 1):
            _, gradients = factor_loss(self.parameters_, q, duels, self.penalty)
            for name, gradient in gradients.items():
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                move = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                self.parameters_[name] = self.parameters_[name] - self.rate * move
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Chance of each model to beat an average one on each prompt, (n, m), in [0, 1]."""
        if not hasattr(self, "parameters_"):
            raise NotFittedError("MatrixFactorisation was used before fit: call fit(prompts, scores, models) first.")
        scores = _bilinear(self.parameters_, self.features_.transform(prompts))
        return np.asarray(1 / (1 + np.exp(-(scores - scores.mean(axis=1, keepdims=True)))))


def _bilinear(parameters: dict[str, FloatArray], q: FloatArray) -> FloatArray:
    h = q @ parameters["w1"] + parameters["b"]
    return np.asarray((h * parameters["w2"]) @ parameters["v"].T)


def factor_loss(
    parameters: dict[str, FloatArray],
    q: FloatArray,
    duels: tuple[IntArray, IntArray, IntArray, FloatArray],
    penalty: float,
) -> tuple[float, dict[str, FloatArray]]:
    """Mean cross-entropy of the duels plus the penalty, and its gradient."""
    query, a, b, won = duels
    h = q @ parameters["w1"] + parameters["b"]
    weighted = h * parameters["w2"]
    scores = weighted @ parameters["v"].T
    margin = scores[query, a] - scores[query, b]
    loss = float(np.mean(np.logaddexp(0, margin) - won * margin))
    error = (1 / (1 + np.exp(-margin)) - won) / max(query.size, 1)
    by_score = np.zeros_like(scores)
    np.add.at(by_score, (query, a), error)
    np.add.at(by_score, (query, b), -error)
    by_weighted = by_score @ parameters["v"]
    gradients = {
        "v": by_score.T @ weighted,
        "w2": (by_weighted * h).sum(axis=0),
        "w1": q.T @ (by_weighted * parameters["w2"]),
        "b": (by_weighted * parameters["w2"]).sum(axis=0),
    }
    for name, p in parameters.items():
        loss += penalty * float((p**2).sum())
        gradients[name] = gradients[name] + 2 * penalty * p
    return loss, gradients


class PairRanker:
    """Rank several answers to one question by learned duels: the logistic of a difference of their descriptions.

    Parameters
    ----------
    penalty : float
        Weight of the squared coefficients.

    References
    ----------
    Jiang et al. 2023 (LLM-Blender, arXiv:2306.02561), section 3: PairRanker, with a linear model for the cross-encoder.
    """

    def __init__(self, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def _rows(self, question: str, answers: Sequence[str]) -> NDArray[np.float64]:
        return np.array(
            [
                answer_form(question, answer, [a for k, a in enumerate(answers) if k != i][: self.n_compared_])
                for i, answer in enumerate(answers)
            ]
        )

    def fit(self, questions: Sequence[str], answers: Sequence[Sequence[str]], scores: FloatArray) -> Self:
        """Learn from answers (n, m) to each question and their scores (n, m)."""
        from scipy.optimize import minimize

        if scores.shape[0] != len(questions) or scores.ndim != 2:
            raise InputError(f"scores have shape {scores.shape} for {len(questions)} questions: give one per answer.")
        self.n_compared_ = min(scores.shape[1] - 1, _MOST_COMPARED)
        rows = np.stack([self._rows(q, a) for q, a in zip(questions, answers, strict=True)])
        self.scale_ = rows.reshape(-1, rows.shape[-1]).std(axis=0) + 1e-9
        query, a, b, won = battles(scores, ties=False)
        if query.size == 0:
            raise InputError("No question has a better and a worse answer: give some that do.")
        x = (rows[query, a] - rows[query, b]) / self.scale_

        def loss(w: FloatArray) -> tuple[float, FloatArray]:
            margin = x @ w
            value = float(np.mean(np.logaddexp(0, margin) - won * margin) + self.penalty / query.size * (w @ w))
            return value, x.T @ (1 / (1 + np.exp(-margin)) - won) / query.size + 2 * self.penalty / query.size * w

        self.weights_ = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
        return self

    def win_rates(self, question: str, answers: Sequence[str]) -> FloatArray:
        """Mean chance of each of m answers, as many as learned from or fewer, to beat another, (m,); 1 for one."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("PairRanker was used before fit: call fit(questions, answers, scores) first.")
        if len(answers) == 1:
            return np.ones(1)
        rows = self._rows(question, answers)
        # What compares with an answer that is missing stands last, and would tell none of the others apart.
        n_known = rows.shape[1]
        worth = (rows / self.scale_[:n_known]) @ self.weights_[:n_known]
        chance = 1 / (1 + np.exp(-(worth[:, None] - worth[None])))
        m = len(answers)
        return np.asarray((chance.sum(axis=1) - 0.5) / max(m - 1, 1))
