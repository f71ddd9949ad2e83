"""Scores of an answer: stated confidence, token probabilities, checked arithmetic, and learned quality."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray, Scorer
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.prompts import form_of
from pilotfish.types import Exchange

__all__ = [
    "AnswerQuality",
    "CalibratedConfidence",
    "Equation",
    "ExpectedWork",
    "MeanLogProb",
    "StatedConfidence",
    "answer_form",
    "equations",
    "final_answer",
    "is_stated",
    "worked_out",
    "wrong_equations",
]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FINAL = re.compile(
    r"(?:####|answer is|answer:|\bA:)\s*(?:\$\s*)?(-?\d[\d,]*(?:\.\d+)?|\(?[A-Ha-h]\)?\b)", re.IGNORECASE
)
_TAGGED = re.compile(r"<<([^=<>]+)=([^<>]+)>>")
# Looked for backwards from each sign of equality, and no further than what is worked out: an answer that repeats itself
# without end would else be read from every one of its characters on.
_EXPRESSION = re.compile(r"(?:\$?\(?\d[\d,.]*%?\)?\s*[-+*/x\u00d7\u00f7]\s*)+\$?\(?\d[\d,.]*%?\)?(?=\s*\Z)")
_STATED = re.compile(r"\s*(?:\$\s*)?(-?\d[\d,]*\.?\d*)")
_RESULT = re.compile(r"=\s*(?:\$\s*)?(-?\d[\d,]*(?:\.\d+)?)")
_LONGEST = 200
# Beyond this a number is as good as infinite, which no mean and no regression may hold.
_LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class Equation:
    """An expression of numbers and what it is stated to be.

    Parameters
    ----------
    start, end : int
        Its characters.
    expression, stated : str
        The two sides.
    stated_at : int
        Where the second begins.
    """

    start: int
    end: int
    expression: str
    stated: str
    stated_at: int


def equations(text: str) -> Iterator[Equation]:
    """Find the equations of a text, from left to right; of an expression too long to be worked out, only its end.

    Examples
    --------
    >>> [(e.expression, e.stated) for e in equations("3 + 4 = 7; then 7 * 2 = $15")]
    [('3 + 4', '7'), ('7 * 2', '15')]
    """
    end = 0
    for sign in re.finditer("=", text):
        at = sign.start()
        found = _EXPRESSION.search(text, max(end, at - 2 * _LONGEST), at)
        stated = _STATED.match(text, at + 1)
        if found is not None and stated is not None:
            yield Equation(found.start(), stated.end(), found.group(), stated.group(1), stated.start(1))
            end = stated.end()


class StatedConfidence:
    """The confidence the model stated with its reply, a probability; NaN where it stated none.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> StatedConfidence().score([Exchange(Request.of("hi"), Reply("yes", confidence=0.9))])
    array([0.9])
    """

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Probability that each answer is right, (n,)."""
        return np.array([math.nan if e.reply.confidence is None else e.reply.confidence for e in items])


class MeanLogProb:
    """Mean natural log-probability of the written tokens (at most 0), or that of the least likely token.

    Parameters
    ----------
    least : bool
        Take the least likely token instead of the mean.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request, TokenLogProb
    >>> reply = Reply("a b", log_probs=(TokenLogProb("a", -0.5), TokenLogProb("b", -1.5)))
    >>> MeanLogProb().score([Exchange(Request.of("hi"), reply)])
    array([-1.])
    """

    def __init__(self, least: bool = False) -> None:
        self.least = least

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,); NaN where the model gave no log-probabilities."""
        values = [[t.log_prob for t in e.reply.log_probs] for e in items]
        return np.array([math.nan if not v else float(min(v) if self.least else np.mean(v)) for v in values])


class CalibratedConfidence:
    """Turn any score into the probability of being right, by isotonic regression on answers whose worth is known.

    Parameters
    ----------
    scorer : Scorer of Exchange
        Ranks answers.

    References
    ----------
    Zadrozny and Elkan 2002.
    """

    def __init__(self, scorer: Scorer[Exchange]) -> None:
        self.scorer = scorer

    def fit(self, exchanges: Sequence[Exchange], targets: FloatArray) -> Self:
        """Learn from answers and whether each is right, 1 or 0; answers without a score are left out.

        A scorer that learns is fitted on every other answer, and its scores are calibrated on the rest.
        """
        from sklearn.isotonic import IsotonicRegression

        known_targets = np.asarray(targets, dtype=np.float64)
        if hasattr(self.scorer, "fit"):
            self.scorer.fit(exchanges[::2], known_targets[::2])
            exchanges, known_targets = exchanges[1::2], known_targets[1::2]
        scores = self.scorer.score(exchanges)
        known = np.isfinite(scores)
        if known.sum() < 2:
            raise InputError(f"{int(known.sum())} answers have a score: give at least 2.")
        line = IsotonicRegression(out_of_bounds="clip").fit(scores[known], known_targets[known])
        self.at_, self.probability_ = line.X_thresholds_, line.y_thresholds_
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Probability that each answer is right, (n,); NaN where there is no score."""
        if not hasattr(self, "at_"):
            raise NotFittedError("CalibratedConfidence was used before fit: call fit(exchanges, targets) first.")
        scores = self.scorer.score(items)
        return np.where(np.isnan(scores), np.nan, np.interp(np.nan_to_num(scores), self.at_, self.probability_))


def _numbers(text: str) -> list[float]:
    return [_number(n) for n in _NUMBER.findall(text)]


def _number(text: str) -> float:
    return max(-_LARGEST, min(_LARGEST, float(text.replace(",", ""))))


def final_answer(text: str) -> str:
    """What an answer comes down to: what follows "####" or "the answer is", else the last number, else the text itself.

    Examples
    --------
    >>> final_answer("3 * 4 = 12. #### 12"), final_answer("So it costs $1,200.50 in all."), final_answer(" Yes. ")
    ('12', '1200.5', 'yes')
    """
    found = _FINAL.findall(text)
    numbers = _NUMBER.findall(text)
    last: str | None = found[-1] if found else numbers[-1] if numbers else None
    if last is None:
        return " ".join(text.strip(" \t\n.\"'").casefold().split())
    try:
        # All of its digits count: amounts such as 12,345.67 and 12,345.71 are two answers.
        return f"{float(last.replace(',', '')):.15g}" if len(last) < 16 else last.replace(",", "")
    except ValueError:
        return last.strip("()").casefold()


def worked_out(expression: str) -> float | None:
    """Value of sums and products of numbers; None for anything else."""
    plain = re.sub(
        r"(\d[\d,.]*)%", r"(\1/100)", expression.replace("x", "*").replace("\u00d7", "*").replace("\u00f7", "/")
    )
    plain = plain.replace("$", "").replace(",", "").strip()
    if len(plain) > _LONGEST or "**" in plain:
        return None
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, ValueError, OverflowError, RecursionError):
        return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError(ast.dump(node))


def is_stated(value: float, stated: str) -> bool:
    """Whether a value is what is stated, which may be rounded or cut off to the digits that it shows.

    A whole number is taken as rounded only within a thousandth of it, and never by as much as its last digit.

    Examples
    --------
    >>> is_stated(10 / 3, "3.3"), is_stated(2 / 3, "0.66"), is_stated(56_088, "56,100"), is_stated(2023, "2022")
    (True, True, True, False)
    """
    plain = stated.replace(",", "").rstrip(".")
    whole, _, decimals = plain.partition(".")
    last = 10.0 ** -len(decimals) if decimals else 10.0 ** min(len(whole) - len(whole.rstrip("0")), 100)
    number = _number(plain)
    near = min(0.999 * last, max(0.011, 0.001 * abs(number)))
    return abs(value - number) <= max(near, 0.5001 * last if decimals else 0.0, 1e-12 * abs(number))


def wrong_equations(text: str) -> tuple[int, int]:
    """Count the equations of an answer that hold and those that do not.

    Examples
    --------
    >>> wrong_equations("3 + 4 = 7, then 7 * 2 = 15")
    (1, 1)
    """
    right = wrong = 0
    plain = [(e.expression, e.stated) for e in equations(_TAGGED.sub("", text))]
    for expression, result in [*_TAGGED.findall(text), *plain]:
        value = worked_out(expression)
        stated = _NUMBER.findall(result)
        if value is None or not stated:
            continue
        if is_stated(value, stated[0]):
            right += 1
        else:
            wrong += 1
    return right, wrong


_KNOWN = frozenset({0.5, 1.0, 2.0, 3.0, 4.0, 7.0, 10.0, 12.0, 24.0, 30.0, 52.0, 60.0, 100.0, 365.0})


def answer_form(question: str, answer: str, samples: Sequence[str] = ()) -> list[float]:
    """Describe an answer against its question: checked equations, numbers used and left over, steps, hedges, agreement.

    Parameters
    ----------
    question, answer : str
        What was asked and answered.
    samples : sequence of str
        Other answers to the question, whose results and steps are compared with this one.
    """
    asked, written = _numbers(question), _numbers(answer)
    asked_set, written_set = set(asked), set(written)
    right, wrong = wrong_equations(answer)
    last = final_answer(answer)
    try:
        result = float(last)
    except ValueError:
        result = math.nan
    whole = math.isfinite(result)
    results = [(m.end(), _number(m.group(1))) for m in _RESULT.finditer(answer)]
    last_at = {_number(m.group()): m.start() for m in _NUMBER.finditer(answer)}
    idle = sum(value != result and last_at.get(value, -1) < end for end, value in results)
    known, strange, n_terms = asked_set | _KNOWN, 0, 0
    for line in answer.split("\n"):
        left = line.split("=")[0]
        for term in _numbers(left)[-3:]:
            n_terms += 1
            strange += term not in known
        known |= set(_numbers(line))
    unused = sum(n not in written_set for n in asked_set)
    steps = written_set - asked_set
    row = [
        math.log1p(len(answer)),
        len(answer) / max(len(question), 1),
        float(len(written)),
        float(len(steps)),
        float(right),
        float(wrong),
        float(wrong > 0),
        float(unused),
        unused / (len(asked_set) + 1),
        float(answer.count("\n")),
        float("####" in answer),
        float(whole and result != int(result)),
        math.log1p(abs(result)) if whole else 0.0,
        float(whole and result < 0),
        float(result in asked_set),
        float(len(results)),
        float(idle),
        float(bool(results) and results[-1][1] == result),
        float(strange),
        strange / (n_terms + 1),
        float(sum(not v.is_integer() for _, v in results)),
        float(any(v < 0 for _, v in results)),
        math.log1p(max((abs(v) for v in written), default=0.0)),
        float(bool(re.search(r"round|approximately|assum|however|but |sorry|cannot|not sure", answer, re.IGNORECASE))),
        float("/" in answer),
        float(answer.count("<<")),
        float(
            sum(
                bool(re.search(cue, question, re.IGNORECASE)) for cue in ("half", "third", "quarter", "twice", "double")
            )
        ),
        float(len(re.findall(r"each|every|per ", question))),
        float(len(re.findall(r"more|less|fewer|than", question))),
        float(bool(re.search(r"%|percent", question))),
        float(len(re.findall(r"hour|minute|day|week|month|year", question))),
        float(len(asked)),
        float(bool(re.search(r"remain|left|rest", question))),
        float(bool(re.search(r"profit|interest|cost|price", question))),
        float(bool(re.search(r"average|ratio|fraction", question))),
    ]
    for sample in samples:
        other_steps = set(_numbers(sample)) - asked_set
        other = final_answer(sample)
        shared = len(steps & other_steps)
        row += [
            float(other == last),
            shared / (len(steps) + 1),
            shared / (len(other_steps) + 1),
            float(result in other_steps),
            float(bool(other) and any(other == f"{s:g}" for s in steps)),
            float(abs(len(other_steps) - len(steps))),
            float(len(other_steps)),
            float(wrong_equations(sample)[1] > 0),
        ]
    return row


class ExpectedWork:
    """What an answer to a question usually takes: steps, length, fractions, size; learned from solved questions.

    Beside each expectation stands how far the answer at hand is from it: ``AnswerQuality(describe=work.describe)``.

    Examples
    --------
    >>> solved = [(f"Add {i} and 3.", f"{i} + 3 = {i + 3}") for i in range(9)]
    >>> work = ExpectedWork().fit([q for q, _ in solved], [a for _, a in solved])
    >>> from pilotfish.types import Reply, Request
    >>> len(work.describe(Exchange(Request.of("Add 4 and 3."), Reply("4 + 3 = 7")))) > 8
    True
    """

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Self:
        """Learn from solved questions."""
        work = np.array([_work(answer) for answer in answers])
        names = ["steps", "length", "fractions", "divisions", "size"]
        self.model_ = KernelQuality(second_stage=False).fit(questions, work, names)
        self.cache_: dict[str, FloatArray] = {}
        return self

    def describe(self, exchange: Exchange) -> list[float]:
        """The default columns, the expectations and the distances from them."""
        question = exchange.request.prompt
        if question not in self.cache_:
            if len(self.cache_) >= 20_000:
                self.cache_.clear()
            self.cache_[question] = self.model_.predict([question])[0]
        expected = self.cache_[question]
        return [*_described(exchange), *expected.tolist(), *(np.array(_work(exchange.reply.text)) - expected).tolist()]


def _work(answer: str) -> list[float]:
    last = final_answer(answer)
    try:
        size = math.log1p(abs(float(last)))
    except ValueError:
        size = 0.0
    shown = [expression for expression, _ in _TAGGED.findall(answer)] + [e.expression for e in equations(answer)]
    steps = len(set(re.findall(r"=\s*(?:\$\s*)?(-?\d[\d,.]*)", answer)))
    joined = " ".join(shown)
    return [float(steps), math.log1p(len(answer)), float("." in joined), float("/" in joined), size]


class _Features(Protocol):
    def __call__(self, exchange: Exchange) -> list[float]: ...


def _described(exchange: Exchange) -> list[float]:
    return list(_form(exchange.request.prompt, exchange.reply.text, tuple(s.text for s in exchange.samples)))


@lru_cache(maxsize=20_000)
def _form(question: str, answer: str, samples: tuple[str, ...]) -> tuple[float, ...]:
    return (*answer_form(question, answer, samples), *form_of(question))


class AnswerQuality:
    """Learn the worth of an answer from what can be seen of it: ridge regression on its form, question and samples.

    Parameters
    ----------
    describe : callable, optional
        Turns an exchange into a row of numbers; the default uses :func:`answer_form` and the form of the question.
    parts : sequence of Scorer of Exchange
        Further scores, each a column; NaN counts as the column's mean.

    Notes
    -----
    The penalty is the one of least leave-one-out error. What is learned is whatever the targets state: probability of
    being right, or the gain of stopping here over going on.

    References
    ----------
    Chen et al. 2023 (FrugalGPT, arXiv:2305.05176), section 3: the generation scoring function.
    """

    def __init__(self, describe: _Features | None = None, parts: Sequence[Scorer[Exchange]] = ()) -> None:
        self.describe = describe
        self.parts = parts

    def _rows(self, exchanges: Sequence[Exchange]) -> FloatArray:
        describe: Callable[[Exchange], list[float]] = self.describe or _described
        rows = np.array([describe(e) for e in exchanges], dtype=np.float64).reshape(len(exchanges), -1)
        return np.column_stack([rows, *(part.score(exchanges) for part in self.parts)])

    def fit(self, exchanges: Sequence[Exchange], targets: FloatArray) -> Self:
        """Learn from answers and what each is worth, (n,)."""
        from sklearn.linear_model import RidgeCV

        if len(exchanges) < 2 or len(exchanges) != len(targets):
            raise InputError(f"{len(exchanges)} answers and {len(targets)} targets: give at least 2, one target each.")
        for part in self.parts:
            if hasattr(part, "fit"):
                part.fit(exchanges, targets)
        rows = self._rows(exchanges)
        self.mean_ = np.nan_to_num(np.nanmean(np.where(np.isfinite(rows), rows, np.nan), axis=0))
        rows = np.where(np.isfinite(rows), rows, self.mean_)
        self.scale_ = rows.std(axis=0) + 1e-9
        line = RidgeCV(alphas=np.geomspace(1, 3000, 15)).fit(np.clip((rows - self.mean_) / self.scale_, -5, 5), targets)
        self.weights_, self.intercept_ = line.coef_, float(line.intercept_)
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Expected worth of each answer, (n,), in the unit of the targets."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("AnswerQuality was used before fit: call fit(exchanges, targets) first.")
        if not items:
            return np.empty(0)
        rows = self._rows(items)
        rows = np.where(np.isfinite(rows), rows, self.mean_)
        return np.asarray(np.clip((rows - self.mean_) / self.scale_, -5, 5) @ self.weights_ + self.intercept_)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        return {
            "mean": self.mean_,
            "scale": self.scale_,
            "weights": self.weights_,
            "intercept": np.array(self.intercept_),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> AnswerQuality:
        """Read what :meth:`to_arrays` wrote."""
        made = cls()
        made.mean_, made.scale_, made.weights_ = arrays["mean"], arrays["scale"], arrays["weights"]
        made.intercept_ = float(arrays["intercept"])
        return made
