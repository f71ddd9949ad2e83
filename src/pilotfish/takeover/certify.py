"""Certification: the threshold above which a student may answer, with a finite-sample bound on what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pilotfish.bounds import (
    betting_upper,
    binomial_lower,
    binomial_p_value,
    binomial_upper,
    monotone_threshold,
    samples_needed,
    selective_threshold,
)
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = ["Certificate", "GroupBound", "Target", "certify"]

Measure = Literal["system", "answers", "correctness"]
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)


@dataclass(frozen=True, slots=True)
class Target:
    """What the user wants kept.

    Parameters
    ----------
    measure : {'system', 'answers', 'correctness'}
        ``system``: share of *all* replies that agree with the large model. ``answers``: share of the student's own
        answers that agree. ``correctness``: share of all replies that are right by gold labels.
    level : float or None
        The share to keep, in (0, 1). None is for ``correctness`` alone: no less right than the large model.
    confidence : float
        Confidence of the certificate, in (0, 1).
    max_spend : float or None
        Ceiling on the mean spend per call, US dollars.

    Examples
    --------
    >>> Target("system", 0.97).risk
    0.03
    """

    measure: Measure = "system"
    level: float | None = 0.97
    confidence: float = 0.95
    max_spend: float | None = None

    def __post_init__(self) -> None:
        if self.measure not in ("system", "answers", "correctness"):
            raise InputError(f"target measure is {self.measure!r}: use system, answers or correctness.")
        if self.level is None and self.measure != "correctness":
            raise InputError(f"target level is missing: {self.measure!r} needs a share such as 0.97.")
        if self.level is not None and not 0 < self.level < 1:
            raise InputError(f"target level is {self.level}: give a share between 0 and 1, such as 0.97.")
        if not 0 < self.confidence < 1:
            raise InputError(f"target confidence is {self.confidence}: give a share between 0 and 1, such as 0.95.")
        if self.max_spend is not None and not self.max_spend >= 0:
            raise InputError(f"target max_spend is {self.max_spend}: give US dollars per call, at least 0.")

    @property
    def risk(self) -> float:
        """The share that may be lost, 1 - level, freed of rounding noise."""
        return round(1 - (self.level if self.level is not None else 0.0), 12)

    @property
    def delta(self) -> float:
        """Risk that the certificate is wrong, 1 - confidence, freed of rounding noise."""
        return round(1 - self.confidence, 12)

    def __str__(self) -> str:
        kept = (
            "no less right than the large model" if self.level is None else f"{self.level:.1%} {_WORDS[self.measure]}"
        )
        return f"{kept}, with {100 * self.confidence:.4g}% confidence"


_WORDS = {
    "system": "of all replies agree with the large model",
    "answers": "of the local answers agree with the large model",
    "correctness": "of all replies are right",
}


@dataclass(frozen=True, slots=True)
class GroupBound:
    """The bound for one group of calls: a class or a segment.

    ``wrong_upper`` bounds the share of the group's local answers that are wrong, all groups at once.
    """

    group: str
    n: int
    n_local: int
    n_wrong: int
    wrong_upper: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proved about a student on held-out calls.

    Parameters
    ----------
    target : Target
        What was asked.
    threshold : float
        Answer locally at or above this confidence; infinity when nothing could be certified.
    n : int
        Held-out calls behind the certificate.
    coverage, coverage_lower : float
        Share of calls answered locally, measured and its lower bound.
    loss, loss_upper : float
        The measured loss of the target's measure and its upper bound.
    local_disagreement_upper : float
        Upper bound of the share of local answers that disagree with the large model, for the audit in service.
    escalated_disagreement_upper : float
        Upper bound of the share of escalated calls where the student would have disagreed, likewise.
    spend_upper : float or None
        Upper bound of the mean spend per call, US dollars, where costs were given.
    n_more : int or None
        About how many more held-out calls would certify something, when nothing was.
    groups : tuple of GroupBound
        Bounds by group, where groups were given.
    reason : str
        One sentence for people.
    """

    target: Target
    threshold: float
    n: int
    coverage: float
    coverage_lower: float
    loss: float
    loss_upper: float
    local_disagreement_upper: float
    escalated_disagreement_upper: float
    spend_upper: float | None = None
    n_more: int | None = None
    groups: tuple[GroupBound, ...] = field(default=())
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether something may be answered locally."""
        return math.isfinite(self.threshold)

    def is_for(self, target: Target) -> bool:
        """Whether it speaks for a target: made for the same one, with no less confidence."""
        return self.target.confidence >= target.confidence and target == replace(
            self.target, confidence=target.confidence
        )

    def to_json(self) -> dict[str, Any]:
        """Write as plain data; an infinite threshold becomes null."""
        data = asdict(self)
        data["threshold"] = self.threshold if self.ok else None
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Read back."""
        values = dict(data)
        values["target"] = Target(**values["target"])
        values["threshold"] = math.inf if values["threshold"] is None else values["threshold"]
        values["groups"] = tuple(GroupBound(**g) for g in values["groups"])
        return cls(**values)


def certify(
    confidence: ArrayLike,
    disagrees: ArrayLike,
    target: Target,
    *,
    wrong: ArrayLike | None = None,
    large_wrong: ArrayLike | None = None,
    costs: ArrayLike | None = None,
    most_cost: float | None = None,
    compared: float = 0.0,
    groups: Sequence[str] | None = None,
) -> Certificate:
    """Find the lowest confidence at which the student may answer and still keep the target.

    Parameters
    ----------
    confidence : array (n,)
        The student's confidence on held-out calls, higher is surer; minus infinity where it may not answer.
    disagrees : array (n,)
        1 where the student's answer differs from the large model's, else 0.
    target : Target
        What to keep.
    wrong, large_wrong : array (n,), optional
        1 where the student's, and the large model's, answer differs from gold; needed for ``correctness``.
    costs : array (n,), optional
        What the large model's call cost, US dollars.
    most_cost : float, optional
        The most that any call may cost, whether or not one of these did; the dearest of these unless given.
    compared : float
        Share of the local answers that the large model is asked for as well, and is paid for.
    groups : sequence of str, optional
        A group per call; each gets its own bound.

    Returns
    -------
    Certificate
        With an infinite threshold and the number of calls still needed, when nothing can be certified.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> confidence = rng.random(2000)
    >>> made = certify(confidence, confidence < 0.1, Target("system", 0.97))
    >>> made.ok, made.coverage > 0.9, made.loss_upper <= 0.03
    (True, True, True)
    """
    scores, differs = np.asarray(confidence, dtype=np.float64), np.asarray(disagrees, dtype=np.float64)
    if target.measure == "correctness":
        if wrong is None or large_wrong is None:
            raise InputError(
                "target measure is 'correctness' but no gold labels are known: give feedback or import some."
            )
        x, x_large = np.asarray(wrong, dtype=np.float64), np.asarray(large_wrong, dtype=np.float64)
        if not x.shape == x_large.shape == differs.shape:
            raise InputError(f"wrong and large_wrong have shapes {x.shape} and {x_large.shape}: give {differs.shape}.")
        threshold = _correctness_threshold(scores, x, x_large, target)
    else:
        x, x_large = differs, np.zeros_like(differs)
        find = monotone_threshold if target.measure == "system" else selective_threshold
        threshold = find(scores, x, target.risk, target.delta)
    local = scores >= threshold
    n, n_local = scores.size, int(local.sum())
    if target.measure == "answers":
        loss, loss_n = float(x[local].sum()), n_local
    else:
        loss, loss_n = float(np.where(local, x, x_large).sum()), n
    certificate = Certificate(
        target=target,
        threshold=threshold,
        n=n,
        coverage=n_local / n if n else 0.0,
        coverage_lower=float(binomial_lower(n_local, n, target.delta)) if n else 0.0,
        loss=loss / loss_n if loss_n else 0.0,
        loss_upper=float(binomial_upper(loss, loss_n, target.delta)) if loss_n else 1.0,
        local_disagreement_upper=float(binomial_upper(differs[local].sum(), n_local, target.delta)),
        escalated_disagreement_upper=float(binomial_upper(differs[~local].sum(), n - n_local, 0.001)),
        spend_upper=_spend_upper(local, costs, most_cost, compared, target),
        n_more=None if n_local else _n_more(scores, x, x_large, target),
        groups=_group_bounds(local, x, groups, target),
    )
    return _explained(certificate)


def _correctness_threshold(scores: FloatArray, wrong: FloatArray, large_wrong: FloatArray, target: Target) -> float:
    """Try a few shares of calls, most local first, each at an equal part of the risk.

    Correctness is not monotone in the threshold: a student can be better than the large model where it is sure and
    worse elsewhere. With a level, the count of wrong replies is tested by the exact binomial; without one, the calls on
    which exactly one of the two is right are tested by the exact sign test.
    """
    for threshold, n_lost, n in _correctness_trials(scores, wrong, large_wrong, target):
        if n and float(binomial_p_value(n_lost, n, _correctness_risk(target))) <= target.delta / len(_SHARES):
            return threshold
    return math.inf


def _correctness_trials(
    scores: FloatArray, wrong: FloatArray, large_wrong: FloatArray, target: Target
) -> Iterator[tuple[float, float, float]]:
    """Threshold, losses and trials of each share of calls, most local first."""
    order = np.sort(scores)[::-1]
    n_familiar = int((scores > -math.inf).sum())
    for share in _SHARES:
        n_local = min(round(share * scores.size), n_familiar)
        if n_local < 1:
            continue
        threshold = float(order[n_local - 1])
        local = scores >= threshold
        if target.level is None:
            losses = float((local & (wrong > large_wrong)).sum())
            yield threshold, losses, losses + float((local & (wrong < large_wrong)).sum())
        else:
            yield threshold, float(np.where(local, wrong, large_wrong).sum()), scores.size


def _correctness_risk(target: Target) -> float:
    return 0.5 if target.level is None else target.risk


def _spend_upper(
    local: np.ndarray, costs: ArrayLike | None, most_cost: float | None, compared: float, target: Target
) -> float | None:
    if costs is None or local.size == 0:
        return None
    paid = np.asarray(costs, dtype=np.float64)
    most = max(float(np.max(paid)), most_cost or 0.0)
    spent = np.where(local, compared * paid, paid)
    return betting_upper(spent / most, target.delta) * most if most > 0 else 0.0


def _n_more(scores: FloatArray, wrong: FloatArray, large_wrong: FloatArray, target: Target) -> int | None:
    """Calls still needed if the student goes on being as right as it was: on the surest fifth, or for correctness on
    the share of calls that needs the fewest.
    """
    if target.measure == "correctness":
        risk, delta = _correctness_risk(target), target.delta / len(_SHARES)
        needed = [
            math.ceil(samples_needed(risk, delta, n_lost / n) * scores.size / n)
            for _, n_lost, n in _correctness_trials(scores, wrong, large_wrong, target)
            if n and n_lost / n < risk
        ]
        return max(1, min(needed) - scores.size) if needed else None
    surest = np.argsort(-scores, kind="stable")[: max(1, scores.size // 5)]
    rate = float(wrong[surest].mean()) if scores.size else 0.0
    share = 1.0 if target.measure == "answers" else 0.2
    if rate * share >= target.risk:
        return None
    n = samples_needed(target.risk, target.delta, rate * share)
    return max(1, (n if share == 0.2 else n * 5) - scores.size)


def _group_bounds(
    local: np.ndarray, wrong: FloatArray, groups: Sequence[str] | None, target: Target
) -> tuple[GroupBound, ...]:
    if groups is None:
        return ()
    names = np.asarray(groups)
    if names.shape != wrong.shape:
        raise InputError(f"groups hold {names.size} names for {wrong.size} calls: give one per call.")
    kinds = sorted(set(groups))
    made = []
    for kind in kinds:
        mine = names == kind
        n_local, n_wrong = int((mine & local).sum()), int(wrong[mine & local].sum())
        upper = float(binomial_upper(n_wrong, n_local, target.delta / len(kinds)))
        made.append(GroupBound(kind, int(mine.sum()), n_local, n_wrong, upper))
    return tuple(made)


def _explained(made: Certificate) -> Certificate:
    ceiling = made.target.max_spend
    if not made.ok:
        if made.n_more:
            more = f"about {made.n_more} more calls are needed"
        elif made.target.level is None:
            more = "it is not right more often than the large model; give a level, such as 0.95, that is enough"
        else:
            more = "the student is not accurate enough yet"
        reason = f"Nothing could be certified from {made.n} held-out calls ({made.target}): {more}."
    elif ceiling is not None and (made.spend_upper is None or made.spend_upper > ceiling):
        spend = "is unknown" if made.spend_upper is None else f"may reach ${made.spend_upper:.3g}"
        reason = (
            f"The quality is certified, but the mean spend per call {spend}, above the ceiling of ${ceiling:.3g}: "
            "raise the ceiling or lower the level."
        )
        made = replace(made, threshold=math.inf)
    else:
        reason = (
            f"Certified on {made.n} held-out calls: {made.coverage:.1%} answered locally, at most "
            f"{made.loss_upper:.2%} lost ({made.target})."
        )
    return replace(made, reason=reason)
