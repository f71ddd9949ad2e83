"""Learning: from logged calls to a student with a certificate."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson

from pilotfish.bounds import binomial_p_value, binomial_upper
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, Progress
from pilotfish.takeover.certify import Certificate, Target, certify
from pilotfish.traffic.tasks import normalise
from pilotfish.training.students import Predicted, Student

__all__ = ["LEAST_LESSONS", "Frontier", "Learned", "Lesson", "learn", "promised"]

LEAST_LESSONS = 60
_LEAST_PER_LABEL = 2
_ENOUGH_HELD = 800


@dataclass(frozen=True, slots=True)
class Lesson:
    """One call to learn from.

    Parameters
    ----------
    text : str
        What varies in the call.
    answer : str
        The large model's answer; one that says nothing is not learned.
    gold : str or None
        The right answer, where known.
    random : bool
        Whether the large model was asked at random and not because the student was unsure: only such calls calibrate.
    cost : float
        What the large model took for it, US dollars.
    group : str or None
        A segment to give its own bound to.
    """

    text: str
    answer: str
    gold: str | None = None
    random: bool = True
    cost: float = 0.0
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """Cost against quality of the student on the held-out calls, over all thresholds."""

    threshold: list[float]
    local: list[float]
    agreement_all: list[float]
    agreement_local: list[float]


@dataclass(frozen=True, slots=True)
class Learned:
    """A student and what was proved about it on held-out calls."""

    student: Student
    certificate: Certificate
    frontier: Frontier
    unknown_labels_upper: float
    unfamiliar_upper: float
    n_fit: int
    n_calibrate: int
    seconds: float
    confusions: tuple[tuple[str, str, int], ...]

    def save(self, folder: Path) -> None:
        """Write the student and what was proved about it, as one step, in the place of what was there."""
        half = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        self.student.save(half)
        about = {
            "certificate": self.certificate.to_json(),
            "frontier": {name: getattr(self.frontier, name) for name in self.frontier.__slots__},
            "confusions": self.confusions,
            "n_fit": self.n_fit,
            "n_calibrate": self.n_calibrate,
            "seconds": self.seconds,
        }
        (half / "learned.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)


def learn(
    lessons: Sequence[Lesson],
    target: Target,
    student: Callable[[], Student],
    *,
    seed: int = 0,
    by_class: bool = False,
    worth: float | None = None,
    compared: float = 0.0,
    instruction: str = "",
    progress: Progress | None = None,
) -> Learned:
    """Fit a student on part of the calls and certify it on the rest.

    Parameters
    ----------
    lessons : sequence of Lesson
        At least 60, of which at least 30 random ones.
    target : Target
        What the student must keep.
    student : callable
        Makes an unfitted student.
    seed : int
        Of the split.
    by_class : bool
        Give every answer its own bound in the certificate.
    worth : float, optional
        Where the student's own confidence promises to answer no more than this share, the held-out answers are not
        looked at, and none of the risk is spent: the certificate is of 0 calls.
    compared : float
        Share of the local answers that the large model will be asked for as well.
    instruction : str
        What the large model is told to do with the calls.
    progress : callable, optional
        Told how many calls were read, and of how many, by what takes long.

    Returns
    -------
    Learned
        The student and its certificate, which may say that nothing can be certified yet.

    Raises
    ------
    InputError
        When there are too few calls, or only one answer among them.
    """
    started = time.perf_counter()
    if len(lessons) < LEAST_LESSONS:
        raise InputError(
            f"The task has {len(lessons)} usable calls since it began or was rolled back: at least {LEAST_LESSONS} "
            "are needed to learn from."
        )
    counts = Counter(normalise(lesson.answer) for lesson in lessons)
    known = {label for label, n in counts.items() if label and n >= _LEAST_PER_LABEL}
    if len(known) < 2:
        raise InputError("The task's calls all have the same answer: wait for calls with other answers.")
    held = _held_out(lessons, target, seed)
    fit = [lesson for i, lesson in enumerate(lessons) if i not in held and normalise(lesson.answer) in known]
    test = [lessons[i] for i in sorted(held)]
    if len({normalise(lesson.answer) for lesson in fit}) < 2 or not test:
        raise InputError(f"The task has {len(lessons)} usable calls, too few to both learn and check: wait for more.")
    by_gold = target.measure == "correctness"
    gold = [x.gold for x in fit] if by_gold else None
    texts, answers, drawn = [x.text for x in fit], [x.answer for x in fit], [x.random for x in fit]
    made = student().fit(texts, answers, gold, drawn, instruction, progress)
    predicted = made.predict([x.text for x in test])
    confidence = np.where(predicted.familiar, predicted.confidence, -np.inf)
    hoped = math.inf if worth is None or by_gold else promised(confidence, target)
    opened = worth is None or hoped > worth
    if not opened:
        predicted, test = _none_of(predicted), []
        confidence = confidence[:0]
    said = [normalise(label) for label in predicted.labels]
    truth = [normalise(x.answer) for x in test]
    disagrees = np.array([a != b for a, b in zip(said, truth, strict=True)], dtype=np.float64)
    # A call without a price is one whose price is not known: it may have been as dear as any.
    most_cost = max(x.cost for x in lessons)
    groups = truth if by_class else [x.group or "" for x in test]
    certificate = certify(
        confidence,
        disagrees,
        target,
        wrong=_wrong(said, test) if by_gold else None,
        large_wrong=_wrong(truth, test) if by_gold else None,
        costs=[x.cost or most_cost for x in test] if most_cost else None,
        most_cost=most_cost,
        compared=compared,
        groups=groups if any(groups) else None,
    )
    if not opened:
        reason = f"The student promises to answer {hoped:.1%}, too little yet: no held-out answer was read."
        certificate = replace(certificate, reason=reason)
    confused = Counter((a, b) for a, b in zip(truth, said, strict=True) if a != b)
    return Learned(
        student=made,
        certificate=certificate,
        frontier=_frontier(confidence, disagrees),
        # In service the large model is heard on escalated calls, where answers it seldom gives are most frequent.
        unknown_labels_upper=_rate_upper(
            np.array([x not in made.known for x in truth])[confidence < certificate.threshold]
        ),
        unfamiliar_upper=_rate_upper(~predicted.familiar),
        n_fit=len(fit),
        n_calibrate=len(test),
        seconds=time.perf_counter() - started,
        confusions=tuple((a, b, n) for (a, b), n in confused.most_common(20)),
    )


def promised(confidence: FloatArray, target: Target) -> float:
    """Share of calls that a student would be certified to answer if its confidence is true; no answer is looked at.

    Parameters
    ----------
    confidence : ndarray (n,)
        Of the student on the calls.
    target : Target
        ``system`` or ``answers``.

    Examples
    --------
    >>> promised(np.full(200, 0.999), Target("system", 0.97)), promised(np.full(200, 0.9), Target("answers", 0.97))
    (1.0, 0.0)
    """
    order = np.sort(confidence)[::-1]
    lost = np.cumsum(1 - np.clip(order, 0.0, 1.0))
    n = np.arange(1, order.size + 1) if target.measure == "answers" else np.full(order.size, order.size)
    passed = np.flatnonzero(np.asarray(binomial_p_value(np.ceil(lost), n, target.risk)) <= target.delta)
    return float(passed[-1] + 1) / order.size if passed.size else 0.0


def _held_out(lessons: Sequence[Lesson], target: Target, seed: int) -> set[int]:
    """A quarter of the random calls, more while they are few; half of those with gold labels for correctness."""
    usable = [i for i, x in enumerate(lessons) if x.random and (target.measure != "correctness" or x.gold is not None)]
    if target.measure == "correctness" and not usable:
        raise InputError("target measure is 'correctness' but no gold labels are known: give feedback or import some.")
    n = len(usable)
    if target.measure == "correctness":
        n_held = n // 2
    elif n < len(lessons):
        # The others cannot be checked on, so that there are enough to learn from without these.
        n_held = min(2 * n // 3, max(_ENOUGH_HELD, len(lessons) // 4))
    else:
        n_held = max(n // 4, min(2 * n // 5, _ENOUGH_HELD))
    chosen = np.random.default_rng(seed).permutation(n)[:n_held]
    return {usable[i] for i in chosen}


def _none_of(predicted: Predicted) -> Predicted:
    return Predicted([], predicted.confidence[:0], predicted.familiar[:0])


def _wrong(said: list[str], test: list[Lesson]) -> FloatArray:
    return np.array([a != normalise(x.gold or "") for a, x in zip(said, test, strict=True)], dtype=np.float64)


def _rate_upper(events: np.ndarray) -> float:
    return float(binomial_upper(int(events.sum()), events.size, 0.001))


def _frontier(confidence: FloatArray, wrong: FloatArray, n_points: int = 40) -> Frontier:
    order = np.argsort(-confidence, kind="stable")
    n = confidence.size
    counts = np.unique(np.linspace(1, n, min(n, n_points)).astype(int))
    lost = np.cumsum(wrong[order])[counts - 1]
    return Frontier(
        threshold=[float(c) if np.isfinite(c) else 0.0 for c in confidence[order][counts - 1]],
        local=(counts / n).tolist(),
        agreement_all=(1 - lost / n).tolist(),
        agreement_local=(1 - lost / counts).tolist(),
    )
