"""Models that judge: two answers against each other, one answer by a rubric, and panels of several judges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.bounds import betting_upper
from pilotfish.errors import ContextLengthError, InputError, NotFittedError
from pilotfish.files import ArrayFile
from pilotfish.protocols import FloatArray, IntArray, Model
from pilotfish.scorers.spending import ask_aside
from pilotfish.scorers.verification import option_probabilities
from pilotfish.types import Exchange, Reply, Request

__all__ = ["GradeJudge", "JudgePanel", "PairJudge", "WinRate", "named_judge", "win_rate"]

_PAIR = """{rubric}

Task: {task}

Answer A:
{a}

Answer B:
{b}

Which answer is better? Reply with only A or B."""
_GRADE = """{rubric}

Task: {task}

Answer:
{answer}

Grade the answer from 1 (useless) to {n_grades} (perfect). Reply with only the number."""
_RUBRIC = "You judge answers. The better answer does what the task says, is true, and is no longer than it needs to be."
_MOST_CHARACTERS, _FEWEST_CHARACTERS = 6000, 100
_AT_ONCE = 64
_NAMED = r"(?:the\s+)?(?:better\s+|best\s+)?(?:answer|option|response|choice|verdict|grade|score|rating)\b"
_LEAD = rf"\W*(?:{_NAMED}\W*(?:is\b\W*)?)?"
# "A good answer would": no verdict, unlike "A is better" or "A because".
_GOES_ON_AS_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|over|though|[a-z]+(?<!s)(?<!u)s)\b)[a-z]")


def _asked(prompt: str, choices: Sequence[str]) -> Request:
    """A request that a local model can answer only with one of the choices, and that asks others for probabilities."""
    return Request.of(prompt, temperature=0.0, max_tokens=8, log_probs=20, extra={"choices": list(choices)})


def _said(text: str, choices: Sequence[str]) -> re.Match[str] | None:
    """The choice that a text begins with, after a word such as "Answer:" at most; None where it names none, or two."""
    names = "|".join(re.escape(c) for c in choices)
    said = re.match(rf"{_LEAD}({names})\b(?!\s*(?:or|and|&)\s*(?:{names})\b)", text, re.IGNORECASE)
    if said is None or not said.group(1).isalpha():
        return said
    rest = text[said.end() :]
    is_article = said.group(1) in "Aa" and _GOES_ON_AS_ARTICLE.match(rest)
    return None if is_article or re.match(rf"\s*/\s*(?:{names})\b", rest, re.IGNORECASE) else said


def _chances(reply: Reply, choices: Sequence[str]) -> FloatArray | None:
    """Probability of each choice; None where the reply names none of them."""
    said = _said(reply.text, choices)
    if said is None:
        return None
    # What counts is how likely the choice was where it was made, be it after "Answer:".
    written, at = _said("".join(t.token for t in reply.log_probs), choices), 0
    end = 0 if written is None else written.start(1)
    while at < len(reply.log_probs) - 1 and end >= len(reply.log_probs[at].token):
        end -= len(reply.log_probs[at].token)
        at += 1
    if reply.log_probs and len(reply.log_probs[at].top) > 1:
        return option_probabilities(reply.replace(log_probs=reply.log_probs[at:]), choices)
    return np.array([float(c.casefold() == said.group(1).casefold()) for c in choices])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def _verdicts(model: Model, prompts: Sequence[Callable[[int], str]], choices: Sequence[str]) -> list[FloatArray | None]:
    """What a model chooses after each prompt, which is written with texts of at most so many characters."""
    replies: list[Reply] = []
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        try:
            replies += ask_aside(model, [_asked(write(_MOST_CHARACTERS), choices) for write in part])
        except ContextLengthError:
            # One long text must not take the verdicts of all others with it.
            replies += [_fitting(model, write, choices) for write in part]
    return [_chances(reply, choices) for reply in replies]


def _fitting(model: Model, write: Callable[[int], str], choices: Sequence[str]) -> Reply:
    """The reply to a prompt whose texts are halved until the model can hold them."""
    most = _MOST_CHARACTERS
    while True:
        try:
            return ask_aside(model, [_asked(write(most), choices)])[0]
        except ContextLengthError:
            if most <= _FEWEST_CHARACTERS:
                raise
            most //= 2


class PairJudge:
    """A model's preference between two answers to one request, asked in both orders.

    A local GGUF model is held to A or B by a grammar, so that even a small one never gives an unreadable verdict.
    Another model's reply that names neither leaves that order out; where both orders are unreadable the score is NaN.
    Of long texts the beginnings are shown: 6,000 characters each, and fewer where the model's context holds no more.

    Parameters
    ----------
    model : Model
        Judges; token probabilities are used where it gives them.
    rubric : str
        What is better, said before the task.
    swap : bool
        Ask in both orders and take the mean, which removes a liking for the first or the second place.

    Attributes
    ----------
    detail_ : dict of str to ndarray (n,)
        ``first`` and ``swapped``: the preference as asked in each order.
    n_unreadable_ : int
        Replies of the last call that named neither answer.

    References
    ----------
    Zheng et al. 2023 (arXiv:2306.05685); Wang et al. 2023 (arXiv:2305.17926) for the order.

    Examples
    --------
    >>> from pilotfish.models.fake import FakeModel
    >>> judge = PairJudge(FakeModel(lambda r: "A" if r.prompt.index("4") < r.prompt.index("5") else "B"))
    >>> asked = Request.of("2 + 2?")
    >>> judge.compare([Exchange(asked, Reply("4"))], [Exchange(asked, Reply("5"))])
    array([1.])
    """

    def __init__(self, model: Model, rubric: str = _RUBRIC, *, swap: bool = True) -> None:
        self.model = model
        self.rubric = rubric
        self.swap = swap

    def compare(self, first: Sequence[Exchange], second: Sequence[Exchange]) -> FloatArray:
        """Preference for the first answer over the second, (n,), in [0, 1]."""
        if len(first) != len(second):
            raise InputError(f"{len(first)} first answers and {len(second)} second ones: give pairs.")
        orders = [list(zip(first, second, strict=True))]
        if self.swap:
            orders.append(list(zip(second, first, strict=True)))
        found = _verdicts(self.model, [partial(self._prompt, x, y) for pairs in orders for x, y in pairs], "AB")
        self.n_unreadable_ = sum(p is None for p in found)
        chances = np.array([math.nan if p is None else p[0] for p in found]).reshape(len(orders), len(first))
        if self.swap:
            chances[1] = 1 - chances[1]
        self.detail_ = dict(zip(("first", "swapped"), chances, strict=False))
        counted = np.isfinite(chances)
        return np.where(counted.any(axis=0), np.nansum(chances, axis=0) / np.maximum(counted.sum(axis=0), 1), np.nan)

    def _prompt(self, x: Exchange, y: Exchange, most: int) -> str:
        task, a, b = (_cut(text, most) for text in (x.request.prompt, x.reply.text, y.reply.text))
        return _PAIR.format(rubric=self.rubric, task=task, a=a, b=b)


class GradeJudge:
    """A model's grade of an answer by a rubric: the expected grade under its token probabilities, in [0, 1].

    Of long texts the beginnings are shown, as by :class:`PairJudge`.

    Parameters
    ----------
    model : Model
        Grades.
    rubric : str
        What a good answer is.
    n_grades : int
        Grades from 1 up, at most 9.

    Attributes
    ----------
    n_unreadable_ : int
        Replies of the last call without a grade, scored NaN.

    References
    ----------
    Liu et al. 2023 (G-Eval, arXiv:2303.16634), section 2: grades weighted by their probability.

    Examples
    --------
    >>> from pilotfish.models.fake import FakeModel
    >>> judge = GradeJudge(FakeModel(["4", "I would rather not say."]))
    >>> judge.score([Exchange(Request.of("2 + 2?"), Reply("4"))] * 2)
    array([0.75,  nan])
    """

    def __init__(self, model: Model, rubric: str = _RUBRIC, *, n_grades: int = 5) -> None:
        self.model = model
        self.rubric = rubric
        self.n_grades = n_grades

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Expected grade of each answer, (n,), in [0, 1]."""
        if not 2 <= self.n_grades <= 9:
            raise InputError(f"GradeJudge n_grades is {self.n_grades}: give 2 to 9.")
        grades = [str(k + 1) for k in range(self.n_grades)]
        found = _verdicts(self.model, [partial(self._prompt, e) for e in items], grades)
        self.n_unreadable_ = sum(p is None for p in found)
        scale = np.linspace(0, 1, self.n_grades)
        return np.array([math.nan if p is None else float(p @ scale) for p in found])

    def _prompt(self, e: Exchange, most: int) -> str:
        facts = "".join(f"Context: {_cut(text, most)}\n" for text in e.context)
        task, answer = f"{facts}{_cut(e.request.prompt, most)}", _cut(e.reply.text, most)
        return _GRADE.format(rubric=self.rubric, task=task, answer=answer, n_grades=self.n_grades)


def named_judge(name: str, n_threads: int | None = None) -> Model:
    """A local model that judges: ``small``, or a name of the catalog or a GGUF file.

    Examples
    --------
    >>> named_judge("small").name
    'smollm2-135m-instruct'
    """
    from pilotfish.models.gguf import GGUFModel

    return GGUFModel(_SMALL if name == "small" else name, n_ctx=4096, n_threads=n_threads)


_SMALL = "smollm2-135m-instruct"


class JudgePanel(ArrayFile):
    """Join the verdicts of several judges, each weighed by a reliability learned from a few gold labels.

    Every judge's two orders are joined first, so that a liking for a place cancels. Then a logistic model says how much
    each verdict tells, and which way: where a kind of item fools most judges, a judge that is mostly wrong counts
    against. Weights are drawn towards a common one, so that 30 to 50 gold labels are enough for dozens of judges.

    Parameters
    ----------
    penalty : float
        Weight of the squared distance of a judge's weight from the common one.

    Attributes
    ----------
    weights_ : ndarray (n_judges,)
        Log-odds that a verdict of each judge adds; negative where a judge misleads.

    References
    ----------
    Dawid and Skene 1979; Verga et al. 2024 (arXiv:2404.18796); Thakur et al. 2024 (arXiv:2406.12624).

    Examples
    --------
    >>> votes = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]] * 5)
    >>> panel = JudgePanel().fit(votes, np.arange(20), votes[:, 0])
    >>> bool(panel.weights_[0] > panel.weights_[1])
    True
    """

    _kept_as = "panel"

    def __init__(self, penalty: float = 2.0) -> None:
        self.penalty = penalty

    def fit(self, verdicts: FloatArray, rows: IntArray, gold: FloatArray) -> Self:
        """Learn from verdicts (n, n_judges) in [0, 1], NaN where a judge gave none, and gold labels of some rows.

        Parameters
        ----------
        verdicts : ndarray (n, n_judges)
            1 where a judge prefers the first answer, 0 the second, 0.5 where its two orders disagree.
        rows : ndarray of int (k,)
            Rows with gold labels.
        gold : ndarray (k,)
            1 where the first answer is better, else 0.
        """
        from scipy.optimize import minimize

        y = np.asarray(gold, dtype=np.float64)
        if len(rows) != y.size or y.size < 2 or not np.isin(y, (0.0, 1.0)).all():
            raise InputError(f"{len(rows)} rows and {y.size} gold labels: give at least 2, each 0 or 1.")
        x = _signed(verdicts)[rows]
        sign = 2 * y - 1
        # Each pair stands for its mirror image too, so there is no intercept: no place is better as such.
        rates = x * sign[:, None]

        def loss(w: FloatArray) -> tuple[float, FloatArray]:
            margin = rates @ (w[0] + w[1:])
            away = 1 / (1 + np.exp(np.clip(margin, -50, 50)))
            slope = -(rates.T @ away)
            value = np.logaddexp(0, -margin).sum() + self.penalty * (w[1:] @ w[1:]) + 0.1 * w[0] ** 2
            return float(value), np.concatenate([[slope.sum() + 0.2 * w[0]], slope + 2 * self.penalty * w[1:]])

        found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
        self.weights_ = found[0] + found[1:]
        return self

    def predict(self, verdicts: FloatArray) -> FloatArray:
        """Probability that the first answer is better, (n,); 0.5 where no judge gave a verdict."""
        self._check_fitted()
        signed = _signed(verdicts)
        if signed.shape[1] != self.weights_.size:
            raise InputError(
                f"verdicts have {signed.shape[1]} columns, but the panel {self.weights_.size} judges: give one each."
            )
        return np.asarray(1 / (1 + np.exp(-np.clip(signed @ self.weights_, -50, 50))))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        self._check_fitted()
        return {"weights": self.weights_, "penalty": np.array(self.penalty)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls(float(arrays["penalty"]))
        made.weights_ = arrays["weights"]
        return made

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise NotFittedError("JudgePanel was used before fit: call fit(verdicts, rows, gold) first.")


def _signed(verdicts: FloatArray) -> FloatArray:
    v = np.asarray(verdicts, dtype=np.float64)
    if v.ndim != 2 or (np.isfinite(v) & ((v < 0) | (v > 1))).any():
        raise InputError(f"verdicts have shape {v.shape}: give numbers in [0, 1], or NaN, as (n, n_judges).")
    return np.nan_to_num(2 * v - 1)


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of wins of the first system, with bounds that hold whatever the judges are worth.

    Parameters
    ----------
    value, low, high : float
        The estimate, and the ends of its interval.
    n, n_gold : int
        Pairs judged, and those with a gold label.
    """

    value: float
    low: float
    high: float
    n: int
    n_gold: int


def win_rate(judged: FloatArray, rows: IntArray, gold: FloatArray, delta: float = 0.05) -> WinRate:
    """Share of wins from judgements of all pairs, corrected by gold labels of a random few.

    The mean judgement plus the mean error of the judges on the gold pairs; with good judges the interval is narrower
    than gold alone would give. Where gold alone is narrower by its own test, it is what is used, at half the risk each.

    Parameters
    ----------
    judged : ndarray (n,)
        Judged probability that the first system's answer is better.
    rows : ndarray of int (k,)
        A random choice of pairs, whose judgements were made without their gold labels.
    gold : ndarray (k,)
        1 where the first answer is better, else 0.
    delta : float
        Risk that the true share lies outside the interval.

    References
    ----------
    Angelopoulos et al. 2023 (prediction-powered inference, arXiv:2301.09633); bounds by betting, as in
    :func:`pilotfish.bounds.betting_upper`.

    Examples
    --------
    >>> judged = np.full(200, 0.7)
    >>> found = win_rate(judged, np.arange(50), np.repeat([1.0, 0.0], [35, 15]))
    >>> found.value.__round__(2), found.low < 0.7 < found.high
    (0.7, True)
    """
    p, y = np.asarray(judged, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if not np.isfinite(p).all() or len(rows) != y.size or y.size < 2:
        raise InputError(f"{int((~np.isfinite(p)).sum())} judgements are not finite, {y.size} gold labels: give both.")
    mean, error = float(p.mean()), p[rows] - y
    by_judges = (
        max(0.0, mean - (2 * betting_upper((error + 1) / 2, delta / 4) - 1)),
        min(1.0, mean + (2 * betting_upper((1 - error) / 2, delta / 4) - 1)),
    )
    by_gold = (1 - betting_upper(1 - y, delta / 4), betting_upper(y, delta / 4))
    judges_win = by_judges[1] - by_judges[0] <= by_gold[1] - by_gold[0]
    low, high = by_judges if judges_win else by_gold
    value = mean - float(error.mean()) if judges_win else float(y.mean())
    return WinRate(min(max(value, low), high), low, high, p.size, y.size)
