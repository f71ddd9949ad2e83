"""A model asked about its own answer, or about its chance before answering, and the size of a conformal set."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray, Model
from pilotfish.scorers.answers import final_answer
from pilotfish.scorers.spending import ask_aside
from pilotfish.types import Exchange, Reply, Request

__all__ = [
    "ChainOfVerification",
    "ConformalSetSize",
    "InternalConfidence",
    "OptionSetSize",
    "SelfVerification",
    "option_probabilities",
]

_YES = re.compile(r"\W*(yes|true|correct|right)\b", re.IGNORECASE)


def option_probabilities(reply: Reply, options: Sequence[str]) -> FloatArray:
    """Probability of each option by the first token's log-probabilities, adding up to 1, (k,).

    Options compare by their first letters, case and spaces aside; an option not among the alternatives gets what the
    least likely alternative has.

    Raises
    ------
    InputError
        When the reply has no log-probabilities.

    Examples
    --------
    >>> from pilotfish.types import TokenLogProb
    >>> first = TokenLogProb("A", math.log(0.6), (("A", math.log(0.6)), ("B", math.log(0.2))))
    >>> option_probabilities(Reply("A", log_probs=(first,)), ["A", "B"]).round(2)
    array([0.75, 0.25])
    """
    if not reply.log_probs:
        raise InputError("The reply has no log-probabilities: ask a model that gives them, with log_probs=20.")
    first = reply.log_probs[0]
    seen: dict[str, float] = {}
    for token, log_prob in first.top or ((first.token, first.log_prob),):
        key = token.strip().casefold()
        seen[key] = float(np.logaddexp(seen.get(key, -math.inf), log_prob))
    floor = min(seen.values())
    values = []
    for option in options:
        name = option.strip().casefold()
        at = [v for token, v in seen.items() if token and name.startswith(token)]
        values.append(max(at) if at else floor)
    weights = np.exp(np.array(values) - max(values))
    return np.asarray(weights / weights.sum())


class InternalConfidence:
    """A model's probability of "yes" when asked whether it could answer, before it writes a token of the answer.

    Parameters
    ----------
    model : Model
        Gives log-probabilities.
    question : str
        Asked after the prompt.

    References
    ----------
    Chen et al. 2025, Query-level uncertainty in large language models (arXiv:2506.09669), without the layers: the last
    layer's P(yes) alone.
    """

    question = "Before answering: can you answer this correctly? Reply with only Yes or No."

    def __init__(self, model: Model, question: str | None = None) -> None:
        self.model = model
        self.asked = question or self.question

    @property
    def n_calls(self) -> int:
        """Calls of the model for each prompt."""
        return 1

    def score(self, items: Sequence[Request]) -> FloatArray:
        """Probability of "yes" per request, (n,)."""
        if not items:
            return np.empty(0)
        asked = [
            Request.of(
                f"{r.prompt}\n\n{self.asked}", system=r.system or None, max_tokens=1, temperature=0.0, log_probs=20
            )
            for r in items
        ]
        return np.array([option_probabilities(reply, ["Yes", "No"])[0] for reply in ask_aside(self.model, asked)])


class SelfVerification:
    """Share of a few samples in which a model, shown its answer, says that it is right.

    Parameters
    ----------
    model : Model
        Verifies; usually the one that answered.
    n_samples : int
        Times it is asked.
    temperature : float
        Of those samples.

    References
    ----------
    Madaan et al. 2023 (AutoMix, arXiv:2310.12963), section 3.1.
    """

    def __init__(self, model: Model, n_samples: int = 4, temperature: float = 0.7) -> None:
        self.model = model
        self.n_samples = n_samples
        self.temperature = temperature

    @property
    def n_calls(self) -> int:
        """Calls of the model for each answer."""
        return self.n_samples

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Share in [0, 1] of verifications that pass, (n,)."""
        asked = []
        for item in items:
            documents = "".join(f"Context: {text}\n" for text in item.context)
            said = f"{documents}Question: {item.request.prompt}\n\nProposed answer: {item.reply.text}\n\n"
            for k in range(self.n_samples):
                prompt = said + "Is the proposed answer correct? Reply with only Yes or No."
                asked.append(Request.of(prompt, max_tokens=4, temperature=self.temperature, seed=k + 1))
        passed = np.array([bool(_YES.match(r.text)) for r in ask_aside(self.model, asked)], dtype=np.float64)
        return np.asarray(passed.reshape(len(items), self.n_samples).mean(axis=1))


class ChainOfVerification:
    """Ask for questions that test an answer, answer them apart from it, answer anew: 1 where the result stands, else 0.

    Parameters
    ----------
    model : Model
        Plans, answers and concludes.
    n_questions : int
        Verification questions per answer.

    References
    ----------
    Dhuliawala et al. 2023 (arXiv:2309.11495), the factored variant.
    """

    def __init__(self, model: Model, n_questions: int = 3) -> None:
        self.model = model
        self.n_questions = n_questions

    @property
    def n_calls(self) -> int:
        """Calls of the model for each answer."""
        return self.n_questions + 2

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """1 where the answer stands after verification, else 0, (n,)."""
        if not items:
            return np.empty(0)
        plans = ask_aside(
            self.model,
            [
                Request.of(
                    f"Question: {e.request.prompt}\nAnswer: {e.reply.text}\n\nWrite {self.n_questions} "
                    "short questions, one a line, that would check the facts of this answer.",
                    temperature=0.0,
                    max_tokens=40 * self.n_questions,
                )
                for e in items
            ],
        )
        questions = [[q.strip() for q in p.text.splitlines() if q.strip()][: self.n_questions] for p in plans]
        flat = [Request.of(q, temperature=0.0, max_tokens=80) for row in questions for q in row]
        found = iter(ask_aside(self.model, flat) if flat else [])
        facts = ["\n".join(f"{q} {next(found).text.strip()}" for q in row) for row in questions]
        again = ask_aside(
            self.model,
            [
                Request.of(
                    f"Known facts:\n{known}\n\n{e.request.prompt}", system=e.request.system or None, temperature=0.0
                )
                for e, known in zip(items, facts, strict=True)
            ],
        )
        return np.array(
            [float(final_answer(e.reply.text) == final_answer(new.text)) for e, new in zip(items, again, strict=True)]
        )


class ConformalSetSize:
    """Minus the number of options a conformal prediction set holds: one option left means the model knows.

    Parameters
    ----------
    delta : float
        The set misses the right option at most this often, on traffic like the calibration data.

    References
    ----------
    Su et al. 2025 (CP-Router, arXiv:2505.19970); Sadinle et al. 2019: the score 1 - p(label).

    Examples
    --------
    >>> sets = ConformalSetSize(delta=0.25).fit(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 0]))
    >>> sets.threshold_.round(2), sets.sizes(np.array([[0.95, 0.05], [0.5, 0.5]]))
    (np.float64(0.7), array([1, 0]))
    """

    def __init__(self, delta: float = 0.1) -> None:
        self.delta = delta

    def fit(self, probabilities: FloatArray, labels: FloatArray | Sequence[int]) -> Self:
        """Learn the threshold from probabilities (n, k) and the right options (n,)."""
        if not 0 < self.delta < 1:
            raise InputError(f"delta is {self.delta}: give a risk between 0 and 1.")
        n = probabilities.shape[0]
        misfit = np.sort(1 - probabilities[np.arange(n), np.asarray(labels, dtype=np.int64)])
        rank = math.ceil((n + 1) * (1 - self.delta))
        self.threshold_ = np.float64(0.0) if rank > n else np.float64(1 - misfit[rank - 1])
        return self

    def sizes(self, probabilities: FloatArray) -> FloatArray:
        """Number of options in each set, (n,)."""
        if not hasattr(self, "threshold_"):
            raise NotFittedError("ConformalSetSize was used before fit: call fit(probabilities, labels) first.")
        return np.asarray((probabilities >= self.threshold_ - 1e-12).sum(axis=1))

    def score(self, items: Sequence[FloatArray]) -> FloatArray:
        """Minus the set's size per row of probabilities, (n,); an empty set counts as the largest: it is no answer."""
        if not len(items):
            return np.empty(0)
        rows = np.asarray(items, dtype=np.float64)
        sizes = self.sizes(rows)
        return -np.where(sizes == 0, rows.shape[1], sizes).astype(np.float64)


class OptionSetSize:
    """Minus the size of a model's conformal set of options, as a scorer of requests; its best probability breaks ties.

    Parameters
    ----------
    model : Model
        Gives log-probabilities; asked for one token.
    options : sequence of str
        The options' first tokens, such as A, B, C, D.
    delta : float
        Risk that the set misses the right option.
    """

    def __init__(self, model: Model, options: Sequence[str], delta: float = 0.1) -> None:
        self.model = model
        self.options = tuple(options)
        self.delta = delta

    def probabilities(self, items: Sequence[Request]) -> FloatArray:
        """Probability of each option per request, (n, k)."""
        # Without its tools: a call of one has no option to read.
        asked = [item.replace(max_tokens=1, temperature=0.0, log_probs=20, extra={}) for item in items]
        return np.array([option_probabilities(reply, self.options) for reply in ask_aside(self.model, asked)])

    def fit(self, items: Sequence[Request], labels: Sequence[int]) -> Self:
        """Learn the set's threshold from requests and the number of each one's right option."""
        self.sets_ = ConformalSetSize(self.delta).fit(self.probabilities(items), labels)
        return self

    @property
    def n_calls(self) -> int:
        """Calls of the model for each prompt."""
        return 1

    def score(self, items: Sequence[Request]) -> FloatArray:
        """Score per request, (n,): minus the number of options, plus the best one's probability."""
        if not hasattr(self, "sets_"):
            raise NotFittedError("OptionSetSize was used before fit: call fit(requests, labels) first.")
        if not items:
            return np.empty(0)
        p = self.probabilities(items)
        return np.asarray(self.sets_.score(list(p)) + p.max(axis=1))
