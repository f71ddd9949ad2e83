"""Agreement: among samples of one model, and among models without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import Embedder, FloatArray, Model
from pilotfish.scorers.answers import final_answer
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.spending import ask_aside
from pilotfish.types import Exchange, Reply
from pilotfish.vectors import in_parts

__all__ = ["Agreement", "OutputAgreement", "triplet_quality", "vote"]

_FORMATS = (
    "",
    "Think step by step, then give the answer.",
    "Write a short program in your head, run it, then give the answer.",
)


class Agreement:
    """Share of the other samples whose final answer is the reply's.

    Samples recorded with the exchange are used; where there are none and a model is given, it is asked again, with
    another way of thinking each time.

    Parameters
    ----------
    model : Model, optional
        Asked for samples.
    n_samples : int
        How many to ask for.
    temperature : float
        Of the samples.
    answer_of : callable
        What an answer comes down to.

    References
    ----------
    Yue et al. 2023 (arXiv:2310.03094): cascades by answer consistency over mixed thought formats.

    Examples
    --------
    >>> from pilotfish.types import Request
    >>> asked = Exchange(Request.of("2+2?"), Reply("It is 4."), samples=(Reply("4"), Reply("5")))
    >>> Agreement().score([asked])
    array([0.5])
    """

    def __init__(
        self,
        model: Model | None = None,
        n_samples: int = 4,
        temperature: float = 0.7,
        answer_of: Callable[[str], str] = final_answer,
    ) -> None:
        self.model = model
        self.n_samples = n_samples
        self.temperature = temperature
        self.answer_of = answer_of

    @property
    def n_calls(self) -> int:
        """Calls of the model for each answer."""
        return 0 if self.model is None else self.n_samples

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Share in [0, 1] of agreeing samples per answer, (n,); NaN where there is no sample."""
        return np.array([self._share(item) for item in items])

    def _share(self, item: Exchange) -> float:
        samples = item.samples or self._sampled(item)
        own = self.answer_of(item.reply.text)
        return float(np.mean([self.answer_of(s.text) == own for s in samples])) if samples else float("nan")

    def _sampled(self, item: Exchange) -> list[Reply]:
        if self.model is None:
            return []
        requests = []
        for k in range(self.n_samples):
            ask = item.request.replace(temperature=self.temperature, seed=k + 1)
            hint = _FORMATS[k % len(_FORMATS)]
            if hint:
                last = ask.messages[-1]
                if isinstance(last.content, str):
                    content = f"{last.content}\n\n{hint}"
                    ask = ask.replace(messages=(*ask.messages[:-1], type(last)(last.role, content, last.extra)))
            requests.append(ask)
        return ask_aside(self.model, requests)


def vote(replies: Sequence[Reply], answer_of: Callable[[str], str] = final_answer) -> tuple[Reply, float]:
    """Most frequent final answer's first reply, and its share.

    Examples
    --------
    >>> vote([Reply("4"), Reply("it is 5"), Reply("5")])[1].__round__(2)
    0.67
    """
    if not replies:
        raise InputError("replies is empty: give at least one.")
    answers = [answer_of(reply.text) for reply in replies]
    names, counts = np.unique(answers, return_counts=True)
    winner = answers.index(str(names[counts == counts.max()][0]))
    return replies[winner], float(counts.max() / len(answers))


def triplet_quality(vectors: FloatArray) -> FloatArray:
    """Precision of each of m models from the distances between their outputs alone, no labels; all add up to 1.

    The model: each output's embedding is the truth plus noise of the model's own size, independent between models. Then
    model i's mean squared noise is the mean over pairs (j, k) of (d_ij + d_ik - d_jk) / 2, d the mean squared distance.
    Outputs that are identical leave no noise, and few of them may leave a negative one: below a thousandth of the mean
    distance between models all noise counts as that, so that models whose outputs are all the same are equally good.

    Parameters
    ----------
    vectors : ndarray (n, m, d)
        Embedded outputs of m >= 3 models on n queries.

    Returns
    -------
    ndarray (m,)
        Inverse of the squared noise over the sum of all models'; higher is better.

    References
    ----------
    Guha et al. 2024 (Smoothie, arXiv:2412.04692), algorithm 1.

    Examples
    --------
    >>> noise = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * [0.1, 0.1, 0.2]
    >>> triplet_quality(noise[:, :, None]).round(3), triplet_quality(np.zeros((2, 4, 1)))
    (array([0.444, 0.444, 0.111]), array([0.25, 0.25, 0.25, 0.25]))
    """
    if vectors.ndim != 3 or vectors.shape[1] < 3:
        raise InputError(f"vectors have shape {vectors.shape}: give (n, m, d) with at least 3 models.")
    n_models = vectors.shape[1]
    distance = ((vectors[:, :, None] - vectors[:, None]) ** 2).sum(axis=-1).mean(axis=0)
    noise = np.empty(n_models)
    for i in range(n_models):
        others = [j for j in range(n_models) if j != i]
        pairs = [(j, k) for a, j in enumerate(others) for k in others[a + 1 :]]
        noise[i] = np.mean([(distance[i, j] + distance[i, k] - distance[j, k]) / 2 for j, k in pairs])
    floor = 0.001 * distance.sum() / (n_models * (n_models - 1))
    precision = 1 / np.maximum(noise, max(floor, 1e-12))
    return np.asarray(precision / precision.sum())


class OutputAgreement:
    """Label-free quality of every model near a prompt, from how far its recorded outputs lie from the others'.

    Parameters
    ----------
    embedder : Embedder
        Embeds outputs.
    k : int
        Neighbouring prompts looked at; 0 looks at all.
    features : PromptFeatures, optional
        Finds neighbours.

    References
    ----------
    Guha et al. 2024 (Smoothie, arXiv:2412.04692): Smoothie-global for k = 0, Smoothie-local else.
    """

    relative = True

    def __init__(self, embedder: Embedder, k: int = 20, features: PromptFeatures | None = None) -> None:
        self.embedder = embedder
        self.k = k
        self.features = features

    def fit_outputs(self, prompts: Sequence[str], outputs: Sequence[Sequence[str]], models: Sequence[str]) -> Self:
        """Learn from what the models answered, (n, m) texts; no score is needed."""
        flat = [text for row in outputs for text in row]
        if len(models) < 3 or len(flat) != len(prompts) * len(models):
            raise InputError(
                f"outputs of {len(models)} models for {len(prompts)} prompts: give 3 models and all answers."
            )
        self.models_ = tuple(models)
        embedded = np.asarray(self.embedder.embed(flat), dtype=np.float64)
        self.vectors_ = embedded.reshape(len(prompts), len(models), -1)
        self.features_ = self.features or PromptFeatures(n_topics=min(100, len(prompts) - 1))
        self.rows_ = self.features_.fit_transform(prompts)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Precision of every model on each prompt, (n, m), higher is better; those of a prompt add up to 1."""
        if not hasattr(self, "vectors_"):
            raise NotFittedError("OutputAgreement was used before fit_outputs: call it with recorded answers first.")
        if self.k == 0:
            return np.tile(triplet_quality(self.vectors_), (len(prompts), 1))
        return in_parts(self._near, prompts, len(self.models_))

    def _near(self, prompts: Sequence[str]) -> FloatArray:
        similar = self.features_.transform(prompts) @ self.rows_.T
        nearest = np.argsort(-similar, axis=1)[:, : self.k]
        return np.stack([triplet_quality(self.vectors_[at]) for at in nearest])
